"""Policies on real trainers, by the command that people type."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from rfflow import __main__ as cli
from rfflow.config import files

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


class Trained:
    """What an experiment has left."""

    def __init__(self, root: Path):
        with open(root / "runs.csv", encoding="utf-8") as file:
            self.runs = {int(row["run"]): row for row in csv.DictReader(file)}
        self.weights = {path.parts[-4]: path.read_bytes() for path in root.glob("runs/*/*/final/*.safetensors")}
        ops = root / "ops.jsonl"
        self.ops = [json.loads(line) for line in ops.read_text().splitlines()] if ops.exists() else []


@pytest.fixture
def train(tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def command(name: str, *words: str) -> Trained:
        root = tmp_path / name
        tiny = ["model=hub", f"model.name={tiny_model}", "model.dtype=float32", "dataset=local"]
        few = [f"dataset.path={tiny_data}", "dataset.max_samples=20", "dataset.eval_size=4", "chunks=4"]
        given = ["+recipe=sft", "--multirun", f"hydra.sweep.dir={root}", *tiny, *few, "control.idle_timeout=0", *words]
        monkeypatch.setattr(sys, "argv", ["rfflow", *given])
        cli.main()
        return Trained(root)

    monkeypatch.chdir(tmp_path)
    return command


def test_a_dry_run_trains_every_weight_as_without_a_policy(train, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    plain = train("plain", "lr=1e-2,1e-5")
    capsys.readouterr()
    dry = train("dry", "lr=1e-2,1e-5", "policy=halving", "policy.dry_run=true")
    said = capsys.readouterr()
    assert "Policy halving would stop run 1: place 2 of 2 after chunk 1; 1 go on." in said.out + said.err
    assert len(plain.weights) == 2 and dry.weights == plain.weights
    assert [run["state"] for run in dry.runs.values()] == ["completed"] * 2 and dry.ops == []


def test_population_based_training_from_a_file_of_rules(train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """After chunk 2 the worst of four stops, and the best goes on twice more from its weights with other rates."""
    (tmp_path / "pbt.yaml").write_text((files.CONF / "policy/pbt.yaml").read_text(), encoding="utf-8")
    done = train("pbt", "lr=1e-2,1e-3,1e-4,1e-5", "policy=rules", "policy.file=pbt.yaml")
    assert {op["by"] for op in done.ops} == {f"policy/rules/{rule}" for rule in ("exploit", "explore", "done")}
    state = {number: (run["state"], run["chunk"], run["parent"], run["overrides"]) for number, run in done.runs.items()}
    assert state == {
        0: ("completed", "4", "", "lr=0.01"),
        1: ("completed", "4", "", "lr=0.001"),
        2: ("completed", "4", "", "lr=0.0001"),
        3: ("stopped", "2", "", "lr=1e-05"),
        4: ("stopped", "2", "0", "lr=0.008"),
        5: ("stopped", "2", "0", "lr=0.0125"),
    }
    assert float(done.runs[4]["eval_loss"]) < float(done.runs[1]["eval_loss"]), "it began with its parent's weights"
