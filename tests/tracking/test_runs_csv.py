"""runs.csv, as people read it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas
import pytest

from rfflow.config.spec import Objective
from rfflow.runs.run import Run, RunState
from rfflow.tracking.runs_csv import COLUMNS, RunsTable, newest_checkpoint
from tests.tracking.story import FOUR, Story, make_experiment, tell_whole


def test_pandas_reads_a_row_a_run(tmp_path: Path) -> None:
    """States, progress, the ranking value, metrics of any run, the adapter and the error."""
    experiment = make_experiment(tmp_path, *FOUR)
    tell_whole(experiment, RunsTable())
    table = pandas.read_csv(experiment.paths.runs_table).set_index("run")
    assert [*table.state] == ["completed", "completed", "completed", "failed", "completed", "deleted"]
    assert table.loc[1, "overrides"] == "lr=1e-1 peft=lora_large"
    assert table.loc[4, "parent"] == 0 and math.isnan(table.loc[0, "parent"])
    assert [*table.loc[3, ["chunk", "chunks", "step", "steps", "seconds"]]] == [1, 4, 2, 8, 3.0]
    assert table.loc[0, "objective"] == table.loc[0, "eval_loss"] == pytest.approx(1.1 / 3)
    assert table.loc[4, "objective"] == table.loc[4, "loss"] == 0.3
    assert table.loc[4, "accuracy"] == 0.95 and math.isnan(table.loc[0, "accuracy"])
    assert math.isnan(table.loc[2, "objective"])
    assert table.loc[0, "checkpoint"] == str(experiment.runs[0].paths.final)
    assert table.loc[3, "error"] == "RuntimeError: CUDA out of memory."


def test_it_is_current_at_every_turn(tmp_path: Path) -> None:
    """What has happened stands in the file before the next run gets the device."""
    experiment = make_experiment(tmp_path, *FOUR)
    for _ in Story(experiment, RunsTable()).tell():
        table = pandas.read_csv(experiment.paths.runs_table)
        assert [*table.state] == [run.state.value for run in experiment.runs]
        assert [*table.chunk] == [len(run.chunks) for run in experiment.runs]
        assert [*table.step] == [run.step for run in experiment.runs]


def test_the_header_only_grows_at_its_end(tmp_path: Path) -> None:
    """Who reads columns by their place keeps reading the right ones."""
    experiment = make_experiment(tmp_path, *FOUR)
    before = [*COLUMNS]
    for _ in Story(experiment, RunsTable()).tell():
        header = experiment.paths.runs_table.read_text().partition("\n")[0].split(",")
        assert header[: len(before)] == before
        before = header
    assert before == [*COLUMNS, "loss", "eval_loss", "eval_runtime", "epoch", "grad_norm", "accuracy"]


def test_a_metric_named_like_a_column_does_not_overwrite_it(tmp_path: Path) -> None:
    """A trainer may log a ``step`` or a ``state`` of its own."""
    experiment = make_experiment(tmp_path, ("lr=1",), objective=Objective("step", "maximize"))
    story = Story(experiment, RunsTable())
    story.begin()
    story.chunk(experiment.runs[0], {"step": 99.0})
    table = pandas.read_csv(experiment.paths.runs_table)
    assert table.loc[0, "step"] == 2 and table.loc[0, "metric.step"] == table.loc[0, "objective"] == 99


def test_the_checkpoint_is_the_newest(tmp_path: Path) -> None:
    """Step 10 comes after step 9, and the trained adapter after both."""
    run: Run = make_experiment(tmp_path, ()).runs[0]
    assert newest_checkpoint(run) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
        (run.paths.checkpoints / name).mkdir(parents=True)
    assert newest_checkpoint(run) == run.paths.checkpoints / "checkpoint-10"
    run.paths.final.mkdir()
    assert newest_checkpoint(run) == run.paths.final
    assert run.state is RunState.QUEUED


def test_ops_are_seen_at_once(tmp_path: Path) -> None:
    """A run that was stopped waits for nobody's chunk to be shown so."""
    experiment = make_experiment(tmp_path, ("lr=1",))
    story = Story(experiment, RunsTable())
    story.begin()
    story.chunk(experiment.runs[0])
    for state in (RunState.STOPPED, RunState.RUNNING, RunState.DELETED):
        story.change(experiment.runs[0], state)
        assert [*pandas.read_csv(experiment.paths.runs_table).state] == [state.value]


def test_the_header_is_as_it_was_where_an_experiment_goes_on(tmp_path: Path) -> None:
    """Though the process that goes on comes to know the metrics in another order."""
    experiment = make_experiment(tmp_path, ("lr=1",), ("lr=2",))
    story = Story(experiment, RunsTable())
    story.begin()
    story.chunk(experiment.runs[1], {"loss": 1.0, "step": 2.0})
    story.chunk(experiment.runs[0], {"reward": 1.0, "loss": 1.0})
    before = experiment.paths.runs_table.read_text()
    Story(experiment, RunsTable()).call("on_experiment_start")
    assert experiment.paths.runs_table.read_text() == before
    assert before.startswith(",".join([*COLUMNS, "loss", "metric.step", "reward\n"]))
