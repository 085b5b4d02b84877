"""MLflow, Weights & Biases and Trackio, with their real packages."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.loggers.told import Told
from rfflow.loggers.tracker import Tracker
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import RunState
from rfflow.tracking.metrics_log import MetricsLog
from rfflow.tracking.timeline import Timeline
from tests.tracking.story import Story, add_run, tell_whole


class Deaf(Tracker):
    """Takes what it is told, or fails, or hangs."""

    kind = "Deaf"

    def __init__(self, error: Exception | None = None, gate: threading.Event | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.error, self.gate, self.calls = error, gate, 0

    def _take(self, *args: Any) -> None:
        self.calls += 1
        if self.gate is not None:
            self.gate.wait()
        if self.error is not None:
            raise self.error

    begin = log = tell = keep = end = has_ended = close = _take


def test_a_tracker_that_dies_costs_a_warning(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    """One, and what it has missed at the end; it is not asked for ever."""
    logger = Deaf(ConnectionError("refused"))
    tell_whole(experiment, logger)
    logger.finalize("success")
    assert caplog.text.count("refused") == 1 and "nothing more is given to it" in caplog.text
    assert "has missed" in caplog.text and logger.calls == 6, "five, and the last word"


def test_a_tracker_that_hangs_holds_nobody_up(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the training nor, for ever, the end."""
    gate = threading.Event()
    logger = Deaf(gate=gate, patience=0.01)
    tell_whole(experiment, logger)
    logger.finalize("success")
    assert logger.calls == 1 and "has not taken everything within 0.01 s" in caplog.text
    gate.set()


def test_a_run_that_was_seen_off_late_begins_once(experiment: Experiment) -> None:
    """Though an op has a word on it afterwards."""
    story = Story(experiment)
    story.begin()
    run = experiment.runs[0]
    story.chunk(run, {"loss": 1.0})
    story.complete(run)
    begun: list[int] = []
    logger: Any = Deaf()
    logger.has_ended = lambda group, number: False
    logger.begin = lambda group, view: begun.append(view.number)
    Story(experiment, logger).begin()
    logger.on_op(run, "010.yaml: cloned")
    logger.finalize("success")
    assert begun.count(0) == 1


def test_a_run_that_went_on_after_its_end_has_not_ended(tmp_path: Path) -> None:
    told = Told(tmp_path / "told.jsonl")
    told.end(0)
    assert Told(tmp_path / "told.jsonl").has_ended(0)
    told.log(0, {"loss": 1.0}, 3)
    assert not Told(tmp_path / "told.jsonl").has_ended(0)


def test_what_to_keep_is_checked() -> None:
    """By name."""
    with pytest.raises(ConfigError, match=r"artifacts has 'adaptor'. Did you mean 'adapter'"):
        Deaf(artifacts=["adaptor"])


# --- MLflow -----------------------------------------------------------------------------------------------------------


def mlflow_logger(**kwargs: Any) -> Any:
    pytest.importorskip("mlflow", reason="NOT TESTED: MLflow, which is not installed")
    from rfflow.loggers.mlflow import MLflowLogger

    return MLflowLogger(**kwargs)


def tell_and_resume(experiment: Experiment, make: Any) -> None:
    """Tell of a stop, a clone, a deletion; die, and go on from an older checkpoint."""
    first, second, third, failing = experiment.runs
    logger = make()
    story = Story(experiment, Timeline(), logger)
    story.begin()
    for run in (first, second, third, failing):
        story.chunk(run, {"loss": 2.0, "eval_loss": 2.5})
    story.fail(failing, RuntimeError("no"))
    story.change(second, RunState.STOPPED)
    clone = add_run(experiment, ("lr=5e-4",), parent=0)
    clone.chunks_before = 1
    story.change(clone)
    story.change(third, RunState.DELETED)
    story.chunk(first, {"loss": 1.0})
    story.call("on_exception", error=KeyboardInterrupt())
    logger.finalize("failed")

    first.chunks.pop()
    first.step = 2
    logger = make()
    again = Story(experiment, Timeline(), logger)
    again.begin()
    again.chunk(first, {"loss": 1.0})
    again.change(second, RunState.RUNNING)
    again.chunk(clone, {"loss": 0.5})
    again.complete(first)
    (first.paths.final / "adapter_config.json").write_text("{}")
    again.end()
    logger.finalize("success")


def tell_and_be_killed(experiment: Experiment, make: Any) -> None:
    """Two runs train a chunk more, and one ends, of which a tracker hears nothing; another process goes on."""
    first, second, *_ = experiment.runs
    del experiment.runs[2:]
    logger = make()
    story = Story(experiment, MetricsLog(), logger)
    story.begin()
    for run in (first, second):
        story.chunk(run, {"loss": 2.0})
    logger.finalize("failed")
    deaf = Story(experiment, MetricsLog())
    for run in (first, second):
        deaf.chunk(run, {"loss": 1.0})
    deaf.complete(second)
    for _ in range(2):  # who has heard of it hears nothing twice
        logger = make()
        Story(experiment, logger).begin()
        logger.finalize("failed")


def check_mlflow(experiment: Experiment, uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("sft")
    runs = {run.data.tags["rfflow.run"]: run for run in client.search_runs([found.experiment_id])}
    assert {*runs} == {"all", "0", "1", "2", "3", "4"}, "each once, though another process went on"
    assert runs["0"].info.run_name == "0 lr=1e-3" and runs["all"].info.run_name == "now"
    assert all(
        run.data.tags["mlflow.parentRunId"] == runs["all"].info.run_id for name, run in runs.items() if name != "all"
    )
    assert runs["0"].data.params["lr"] == "0.001" and runs["0"].data.params["trainer.args.learning_rate"] == "0.001"
    assert {name: (run.info.status, run.data.tags.get("rfflow.state")) for name, run in runs.items()} == {
        "all": ("FINISHED", None),
        "0": ("FINISHED", "completed"),
        "1": ("RUNNING", "running"),
        "2": ("KILLED", "deleted"),
        "3": ("FAILED", "failed"),
        "4": ("RUNNING", "running"),
    }
    assert runs["4"].data.tags["rfflow.parent"] == "0"
    assert "run 1 is stopped" in runs["1"].data.tags["mlflow.note.content"]

    def points(run: str, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(runs[run].info.run_id, key)]

    assert points("0", "train/loss") == [(2, 2.0), (4, 1.0)], "nothing twice"
    assert points("0", "by_chunk/train/loss") == [(1, 2.0), (2, 1.0)]
    assert points("4", "by_chunk/train/loss") == [(2, 0.5)], "behind its parent's chunk"
    files = {file.path for file in client.list_artifacts(runs["all"].info.run_id)}
    assert files == {"timeline.json", "timeline.png"}


def test_mlflow_has_a_run_for_each(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its default local store: settings, metrics by step and chunk, states, ops; gone on with after a crash."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(logging.getLogger("mlflow"), "disabled", True)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tell_and_resume(experiment, lambda: mlflow_logger(artifacts=["adapter", "timeline"], tracking_uri=uri))
    check_mlflow(experiment, uri)


def test_mlflow_gets_what_a_killed_process_has_had_no_time_for(experiment: Experiment, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tell_and_be_killed(experiment, lambda: mlflow_logger(tracking_uri=uri))
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("sft").experiment_id])
    runs = {run.data.tags["rfflow.run"]: run.info for run in found}
    for number, status in (("0", "RUNNING"), ("1", "FINISHED")):
        steps, chunks = (
            [(point.step, point.value) for point in client.get_metric_history(runs[number].run_id, key)]
            for key in ("train/loss", "by_chunk/train/loss")
        )
        assert (steps, chunks) == ([(2, 2.0), (4, 1.0)], [(1, 2.0), (2, 1.0)]) and runs[number].status == status


def test_ending_runs_stops_no_logging_of_others(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer under MLflow's autologging logs by a queue of the process, and would fail where it is shut down."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = mlflow_logger(tracking_uri=uri)
    from mlflow import MlflowClient
    from mlflow.store.tracking.abstract_store import AbstractStore

    shut: list[Any] = []
    monkeypatch.setattr(AbstractStore, "shut_down_async_logging", lambda store: shut.append(store))
    tell_whole(experiment, logger)
    logger.finalize("success")
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("sft").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED", "KILLED"} and not shut
    assert all(run.info.end_time for run in runs)


def test_an_mlflow_that_is_not_there_is_answered_before_training(nowhere: str) -> None:
    """With what to start, and what to type instead."""
    with pytest.raises(ConfigError, match=r"MLflow at http://127.*does not answer.*mlflow server --port 5000"):
        mlflow_logger(tracking_uri=nowhere)
