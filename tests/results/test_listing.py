"""Experiments are found again, and shown as their ends were."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment, write
from rfflow.config.spec import Objective
from rfflow.control.ownership import lock_of_experiment
from rfflow.errors import ConfigError
from rfflow.results import commands
from rfflow.results.opened import chosen_run, open_experiment
from rfflow.runs.activations import Activations
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState

HEADER = (
    "run,state,parent,overrides,chunk,chunks,step,steps,seconds,slot,objective,checkpoint,directory,error,eval_loss\n"
)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def leave(root: Path, *runs: RunRecord, started: float = 0.0, rows: str = "") -> Path:
    """Leave an experiment's files; runs that completed leave a model."""
    for run in runs:
        folder = run.path(root) / "checkpoints" / "final"
        if run.state is RunState.COMPLETED:
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text("{}")
    root.mkdir(parents=True, exist_ok=True)
    saved = SavedExperiment("sft", started, runs, objective=Objective(), is_finished=True)
    write(ExperimentPaths(root).state, saved, {}, is_first=True)
    (root / "runs.csv").write_text(HEADER + rows)
    return root


def record(number: int, state: RunState, loss: float | None = None) -> RunRecord:
    """Return a run that did two chunks of two, if it has a loss."""
    metrics = {} if loss is None else {"loss": loss, "eval_loss": loss}
    chunks = () if loss is None else tuple(ChunkResult(number, n, 5 * n + 5, metrics, 0.0, 1.5) for n in range(2))
    error = ("ValueError", "no such thing") if state is RunState.FAILED else None
    overrides = (f"lr=1e-{number + 1}",)
    plan = ChunkPlan((5, 10), 2)
    return RunRecord(
        number, state, overrides, overrides, f"runs/{number}", chunks=chunks, metrics=metrics, plan=plan, error=error
    )


def test_what_the_end_printed_is_shown_at_any_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranked by the objective, with the failure's reason and the models' folders; as JSON, too."""
    runs = [record(0, RunState.COMPLETED, 3.0), record(1, RunState.COMPLETED, 2.0), record(2, RunState.FAILED)]
    leave(tmp_path / "outputs/sft/a", *runs)
    assert commands.main("show", ["outputs/sft/a"]) == 0
    said = capsys.readouterr().out
    assert said.index("★ 1") < said.index("1e-1  ") and "ranked by eval_loss" in said
    assert "run 1  outputs/sft/a/runs/1/checkpoints/final" in said and "failed: ValueError: no such thing" in said
    assert commands.main("show", ["outputs/sft/a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == 1 and found["value"] == 2.0 and found["states"] == {"completed": 2, "failed": 1}
    assert [run["rank"] for run in found["runs"]] == [2, 1, 3] and found["runs"][0]["seconds"] == 3.0


def test_what_became_of_activations_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an experiment of a version that did not say it, nothing is."""
    runs = [record(0, RunState.COMPLETED, 3.0), record(1, RunState.COMPLETED, 2.0)]
    root = leave(tmp_path / "outputs/sft/a", *runs)
    assert commands.main("show", ["outputs/sft/a"]) == 0
    assert "ctivations" not in capsys.readouterr().out
    runs[0] = replace(runs[0], activations=Activations(3, "kept they would take 9 GB", is_chosen=True))
    write(ExperimentPaths(root).state, SavedExperiment("sft", 0.0, tuple(runs)), {})
    assert commands.main("show", ["outputs/sft/a"]) == 0
    said = capsys.readouterr().out
    assert "every 3rd" in said and "run 0  Activations of every 3rd layer are recomputed: kept they would take" in said
    assert commands.main("show", ["outputs/sft/a", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["activations"], first["activations_why"]) == ("every 3rd", "kept they would take 9 GB")
    assert second["activations"] is None
    head, _, body = ExperimentPaths(root).state.read_text().partition("\n")
    before = re.sub(r', "activations": (null|\{[^}]*\})', "", body)
    assert before.count("activations") == 0
    check = json.dumps(json.loads(head) | {"crc32": zlib.crc32(before.encode())})
    ExperimentPaths(root).state.write_text(f"{check}\n{before}")
    assert [run.activations for run in open_experiment(root).experiment.runs] == [None, None]


def test_living_experiments_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then the newest; a damaged one is said and hides no other."""
    old = leave(
        tmp_path / "outputs/sft/old", record(0, RunState.RUNNING), rows="0,running,,,1,2,5,10,1.5,0,2.5,,,,2.5\n"
    )
    leave(tmp_path / "outputs/sft/new", record(0, RunState.COMPLETED, 1.0), started=9.0)
    (tmp_path / "outputs/bad").mkdir()
    (tmp_path / "outputs/bad/experiment.json").write_text("{")
    lock = lock_of_experiment(old)
    lock.acquire()
    try:
        assert commands.main("ls", ["--json"]) == 0
    finally:
        lock.release()
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [row["directory"] for row in found] == ["outputs/sft/old", "outputs/sft/new"]
    assert found[0]["is_living"] and found[0]["value"] == 2.5 and found[0]["bytes"] > 0
    assert "bad/experiment.json" in said.err and "damaged" in said.err
    assert commands.main("ls", []) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "outputs/sft/new",
        "outputs/sft/old",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["show", "outputs/sft/frist"], "does not exist. Did you mean 'first'? All there are: python -m rfflow ls"),
        (["show", "outputs"], "outputs is not an experiment. In it: outputs/sft/first"),
        (["show", "empty"], "it has no experiment.json"),
        (["ls", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_is_no_experiment_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    leave(tmp_path / "outputs/sft/first", record(0, RunState.COMPLETED, 3.0))
    (tmp_path / "empty").mkdir()
    assert commands.main(argv[0], argv[1:]) == 1
    assert said in capsys.readouterr().err


def test_what_kept_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An experiment with checkpoint.every=null has a table and no experiment.json."""
    root = leave(tmp_path / "outputs/sft/first", record(0, RunState.COMPLETED, 3.0))
    (root / "experiment.json").unlink()
    assert commands.main("ls", []) == 0
    assert "run with checkpoint.every=null: outputs/sft/first" in capsys.readouterr().err
    assert commands.main("show", ["outputs/sft/first"]) == 1
    assert "checkpoint.every=null, which leaves nothing to open" in capsys.readouterr().err


def test_a_run_is_chosen(tmp_path: Path) -> None:
    """The best one that completed, or by its number; else a sentence."""
    runs = [record(0, RunState.COMPLETED, 3.0), record(1, RunState.COMPLETED, 2.0), record(2, RunState.FAILED)]
    opened = open_experiment(leave(tmp_path / "x", *runs))
    assert chosen_run(opened).number == 1 and chosen_run(opened, 0).number == 0
    with pytest.raises(ConfigError, match=r"x has no run 7. Runs: 0, 1, 2"):
        chosen_run(opened, 7)
    with pytest.raises(ConfigError, match="Run 2 of x is failed and left no model"):
        chosen_run(opened, 2)
    with pytest.raises(ConfigError, match="y has no completed run with a model: run 0 is failed"):
        chosen_run(open_experiment(leave(tmp_path / "y", record(0, RunState.FAILED))))
