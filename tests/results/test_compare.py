"""Runs of several experiments in one table, by what tells them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow.checkpointing.experiment_file import SavedExperiment, write
from rfflow.config.spec import Objective
from rfflow.results import commands
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from tests.results.test_listing import HEADER, record


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def leave(
    name: str,
    losses: list[float],
    *overrides: str,
    rank: int = 8,
    objective: str = "eval_loss",
    rows: str = "r",
    trainer: str = "trl.SFTTrainer",
) -> str:
    """Leave an experiment whose runs differ in lr; its peft.r was typed only if it is among the overrides."""
    records = []
    for number, loss in enumerate(losses):
        run = record(number, RunState.COMPLETED, loss)
        config = {"lr": 10.0**-number, "peft": {"r": rank}, "model": {"name": "tiny"}}
        config["trainer"] = {"_target_": trainer}
        job = (*overrides, f"lr=1e-{number}", f"name={name}")
        metrics = {**run.metrics, "eval_f1": 1 / loss}
        records.append(replace(run, job=job, config=json.dumps(config), metrics=metrics))
        file = Path(name, "runs", str(number), "metrics.jsonl")
        file.parent.mkdir(parents=True)
        lines = [
            {"step": step, "chunk": 1, "metrics": {"eval_loss": loss + 5 - step, "epoch": step / 10}} for step in (0, 5)
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    direction: Any = "minimize" if "loss" in objective else "maximize"
    saved = SavedExperiment(
        name, 0.0, tuple(records), data={"key": rows}, objective=Objective(objective, direction), is_finished=True
    )
    write(ExperimentPaths(Path(name)).state, saved, {}, is_first=True)
    Path(name, "runs.csv").write_text(HEADER)
    return name


def compare(*argv: str) -> int:
    return commands.main("compare", argv)


def test_runs_are_ranked_over_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    """And called by the values that differ, typed or not; a number in two forms is one number."""
    leave("a", [3.0, 2.0])
    leave("b", [2.5, 1.5], "peft.r=16", rank=16)
    assert compare("a", "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["experiment"], run["run"]) for run in found["runs"]] == [("b", 1), ("a", 1), ("b", 0), ("a", 0)]
    assert found["metric"] == "eval_loss" and found["runs"][0]["value"] == 1.5 and found["notes"] == []
    assert [sorted(run["overrides"]) for run in found["runs"][:2]] == [["lr=0.1", "peft.r=16"], ["lr=0.1", "peft.r=8"]]
    leave("c", [1.0], "peft.r=16", rank=16, rows="others", trainer="trl.DPOTrainer")
    assert compare("b", "c", "a") == 0
    out = capsys.readouterr().out
    assert out.index("★ 0") < out.index("peft.r=16 lr=0.1") and "have different rows" in out
    assert "different trainers (trl.DPOTrainer, trl.SFTTrainer)" in out


def test_the_metric_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the experiments' objective, or on the command line."""
    leave("a", [3.0, 2.0])
    leave("f", [2.5], objective="eval_f1")
    assert compare("a", "f") == 1
    assert "different objectives: eval_loss (minimize), eval_f1 (maximize). Choose one" in capsys.readouterr().err
    assert compare("a", "f", "--by", "eval_f1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["direction"] == "maximize" and found["runs"][0]["value"] == 0.5
    assert compare("a", "--by", "eval_f1") == 1
    assert "Is a high eval_f1 good or bad?" in capsys.readouterr().err
    assert compare("a", "--by", "eval_los") == 1
    assert "No run has the metric 'eval_los'. Did you mean 'eval_loss'" in capsys.readouterr().err
    assert compare("a", "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_curves_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("a", [3.0, 2.0])
    leave("b", [2.5])
    assert compare("a", "b", "--picture", "new/curves.png") == 0
    assert Path("new/curves.png").read_bytes().startswith(b"\x89PNG") and "new/curves.png" in capsys.readouterr().out
    assert compare("a", "b", "--picture", "curves.svg") == 0
    text = Path("curves.svg").read_text()
    assert "<svg" in text and [path.name for path in Path("new").iterdir()] == ["curves.png"]
    assert compare("a", "--picture", "curves.gif") == 1
    assert "Allowed: .png, .svg, .pdf" in capsys.readouterr().err
    assert compare("a", "--picture", "curves.png", "--by", "eval_f1", "--direction", "maximize") == 1
    assert "no run has logged eval_f1" in capsys.readouterr().err
