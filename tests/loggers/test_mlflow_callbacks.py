"""What a trainer's callback, autologging and ``report_to`` do in MLflow, with the real package and a local store."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.loggers import mlflow as ours
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from rfflow.slots.processes import ProcessSlots
from rfflow.tracking.timeline import Timeline
from tests.loggers.test_trackers import mlflow_logger
from tests.support.tiny import run_spec
from tests.tracking.story import Story

mlflow = pytest.importorskip("mlflow", reason="NOT TESTED: MLflow, which is not installed")


class Logs(TrainerCallback):
    """Logs to MLflow as a script would: whatever run is active there, or a new one."""

    def __init__(self, value: float, begins: bool = False, fails: bool = False):
        self.value, self.begins, self.fails = value, begins, fails

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.begins:
            mlflow.start_run(run_name="mine")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mlflow.log_metric("mine", self.value, step=state.global_step)
        if self.fails:
            raise RuntimeError("no")


class Autologs(TrainerCallback):
    """Turns autologging on where a script would: before it trains."""

    def __init__(self) -> None:
        mlflow.transformers.autolog()


class LogsElsewhere(Logs):
    """Chooses another experiment of MLflow's first."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        mlflow.set_experiment("elsewhere")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store that has its tables, which takes MLflow seconds."""
    place = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{place}").search_experiments()
    return place


@pytest.fixture
def uri(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give MLflow a store of its own, and leave nothing of it behind."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, tmp_path)
    place = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    yield place
    assert mlflow.active_run() is None, "none is active outside of the runs"


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> RunSpec:
    return run_spec(tiny_model, tiny_data, dataset={"max_samples": 16}, chunks=2)


def logging(spec: RunSpec, *values: float, **settings: Any) -> list[RunSpec]:
    """Return a run for each value that its callback logs."""
    nodes = [{"_target_": f"{__name__}.Logs", "value": value, **settings} for value in values]
    return [replace(spec, trainer=replace(spec.trainer, callbacks=(node,))) for node in nodes]


def play(root: Path, specs: Sequence[RunSpec], *, is_tracked: bool = True, devices: int = 1) -> list[Run]:
    """Train them to their ends."""
    logger = {"_target_": "rfflow.loggers.mlflow.MLflowLogger", "artifacts": []}
    experiment = ExperimentSpec(name="sft", accelerator="cpu", loggers={"mlflow": logger} if is_tracked else {})
    slots = ProcessSlots(experiment, [{"OMP_NUM_THREADS": "1"}] * devices) if devices > 1 else None
    engine = Engine(experiment, ExperimentPaths(root), slots=slots)
    for number, each in enumerate(specs):
        engine.add(each, number)
    engine.run()
    engine.close()
    return engine.experiment.runs


def runs_in(uri: str) -> list[Any]:
    """Return MLflow's runs in all of its experiments, the one of all left out."""
    client = mlflow.MlflowClient(uri)
    places = [place.experiment_id for place in client.search_experiments()]
    return [run for run in client.search_runs(places) if run.data.tags.get("rfflow.run") != "all"]


def points(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, key)]


def test_what_a_callback_logs_stands_with_its_run(uri: str, tmp_path: Path, spec: RunSpec) -> None:
    """No run more, though both runs overlap and MLflow keeps one active run a process."""
    play(tmp_path / "one", logging(spec, 1.0, 2.0))
    runs = {run.data.tags.get("rfflow.run"): run for run in runs_in(uri)}
    assert {*runs} == {"0", "1"} and {run.info.status for run in runs.values()} == {"FINISHED"}
    for number, value in (("0", 1.0), ("1", 2.0)):
        assert points(uri, runs[number], "mine") == [(step, value) for step in (1, 2, 3, 4)]
        assert len(points(uri, runs[number], "train/loss")) == 4


@pytest.mark.slow  # two processes import torch
def test_it_does_so_from_processes_of_several_devices(uri: str, tmp_path: Path, spec: RunSpec) -> None:
    play(tmp_path / "one", logging(spec, 1.0, 2.0), devices=2)
    runs = {run.data.tags.get("rfflow.run"): points(uri, run, "mine") for run in runs_in(uri)}
    assert runs == {str(number): [(step, number + 1.0) for step in (1, 2, 3, 4)] for number in (0, 1)}


def test_a_run_that_a_callback_begins_itself_stays_its_own(uri: str, tmp_path: Path, spec: RunSpec) -> None:
    """And ends with ours, though the callback leaves it as RUNNING."""
    play(tmp_path / "one", logging(spec, 1.0, begins=True))
    mine, tracked = sorted(runs_in(uri), key=lambda run: str(run.data.tags.get("rfflow.run")), reverse=True)
    assert mine.info.run_name == "mine" and mine.info.status == "FINISHED" and len(points(uri, mine, "mine")) == 4
    assert tracked.data.tags["rfflow.run"] == "0" and "mine" not in tracked.data.metrics


@pytest.mark.parametrize(("fails", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_without_the_logger_none_is_left_running(
    uri: str, tmp_path: Path, spec: RunSpec, fails: bool, status: str
) -> None:
    """Each of ours has one of its own, which ends as ours did."""
    play(tmp_path / "one", logging(spec, 1.0, 2.0, fails=fails), is_tracked=False)
    runs = runs_in(uri)
    assert [run.info.status for run in runs] == [status] * 2
    assert {value for run in runs for _, value in points(uri, run, "mine")} == {1.0, 2.0}
    assert not any(len({value for _, value in points(uri, run, "mine")}) > 1 for run in runs)


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_run_that_was_active_before_is_neither_ended_nor_taken_away(
    uri: str, tmp_path: Path, spec: RunSpec, is_tracked: bool
) -> None:
    """As of a notebook's cell; with the logger, our runs' callbacks do not mix what they log in there."""
    with mlflow.start_run() as outer:
        play(tmp_path / "one", logging(spec, 1.0), is_tracked=is_tracked)
        assert mlflow.active_run() is outer and mlflow.get_run(outer.info.run_id).info.status == "RUNNING"
    assert len(points(uri, outer, "mine")) == (0 if is_tracked else 4)


def test_a_callback_that_has_chosen_an_experiment_is_let_be(uri: str, tmp_path: Path, spec: RunSpec) -> None:
    """MLflow would raise where the run that is named lies in another."""
    callback = {"_target_": f"{__name__}.LogsElsewhere", "value": 1.0}
    [run] = play(tmp_path / "one", [replace(spec, trainer=replace(spec.trainer, callbacks=(callback,)))])
    assert run.error is None
    [mine] = [run for run in runs_in(uri) if "mine" in run.data.metrics]
    assert mine.info.experiment_id == mlflow.get_experiment_by_name("elsewhere").experiment_id


def test_a_server_that_hangs_is_waited_for_once(
    uri: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first run that trains; it, and all others, go without."""
    monkeypatch.setattr(ours, "_PATIENCE", 0.01)
    gate, waits = threading.Event(), []
    logger = mlflow_logger(tracking_uri=uri, patience=20)
    monkeypatch.setattr(logger, "_open", lambda group: gate.wait())
    wait_for = logger._begun.wait_for
    monkeypatch.setattr(logger._begun, "wait_for", lambda *given: waits.append(given) or wait_for(*given))
    story = Story(experiment, Timeline(), logger)
    story.begin()
    for run in experiment.runs:
        story.chunk(run, {"loss": 2.0})
    assert len(waits) == 1 and not any(run.environ for run in experiment.runs)
    gate.set()
    logger.finalize("failed")


@pytest.mark.parametrize("is_tracked", [True, False])
def test_autologging_mixes_no_runs(uri: str, tmp_path: Path, spec: RunSpec, is_tracked: bool) -> None:
    """It logs into ours; without the logger each has one of its own, though all are called alike."""
    callback = {"_target_": f"{__name__}.Autologs"}
    try:
        play(tmp_path / "one", reporting(spec, callbacks=(callback,)), is_tracked=is_tracked)
    finally:
        mlflow.transformers.autolog(disable=True)
    runs = runs_in(uri)
    assert [run.data.tags.get("rfflow.run") for run in runs] == (["1", "0"] if is_tracked else [None, None])
    check_apart(uri, runs)


def test_a_trainer_that_reports_to_mlflow_has_one_beside_ours(uri: str, tmp_path: Path, spec: RunSpec) -> None:
    """It begins one before the first step; the losses of each stand in its own."""
    play(tmp_path / "one", reporting(spec, report_to="mlflow"))
    tracked = [run for run in runs_in(uri) if "rfflow.run" in run.data.tags]
    assert len(tracked) == 2 and not any("loss" in run.data.metrics for run in tracked)
    check_apart(uri, [run for run in runs_in(uri) if "rfflow.run" not in run.data.tags])


def reporting(spec: RunSpec, *, callbacks: tuple[Any, ...] = (), **args: Any) -> list[RunSpec]:
    """Return two runs that differ in their learning rates."""
    given = [{**spec.trainer.args, "learning_rate": lr, **args} for lr in (1e-2, 1e-3)]
    return [replace(spec, trainer=replace(spec.trainer, args=each, callbacks=callbacks)) for each in given]


def check_apart(uri: str, runs: Sequence[Any]) -> None:
    """See to it that each of two runs has every loss of its own, and has ended."""
    assert sorted(run.data.params["learning_rate"] for run in runs) == ["0.001", "0.01"]
    losses = [points(uri, run, "loss") for run in runs]
    assert [[step for step, _ in each] for each in losses] == [[1, 2, 3, 4]] * 2 and losses[0] != losses[1]
    assert {run.info.status for run in runs} == {"FINISHED"}
