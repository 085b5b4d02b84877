"""What every logger and callback of ours keeps to, whatever it shows."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from rich.console import Console

from rfflow.runs.experiment import Callback, Experiment
from rfflow.tracking.table import LiveTable
from tests.tracking.story import FOUR, Story, add_run, make_experiment, tell_whole

TARGETS = {
    "tensorboard": "rfflow.loggers.tensorboard.TensorBoardLogger",
    "table": "rfflow.tracking.table.LiveTable",
    "runs_csv": "rfflow.tracking.runs_csv.RunsTable",
    "metrics_log": "rfflow.tracking.metrics_log.MetricsLog",
    "timeline": "rfflow.tracking.timeline.Timeline",
}
TURNS = ["begun", "every run has trained", "a run has failed", "a clone has trained", "all are through"]


def _terminal_table() -> LiveTable:
    return LiveTable(console=Console(file=io.StringIO(), force_terminal=True, width=80, height=24))


FACTORIES: dict[str, Callable[[], Any]] = {
    name: (lambda target=target: instantiate({"_target_": target})) for name, target in TARGETS.items()
} | {"table on a terminal": _terminal_table}


@pytest.fixture(params=FACTORIES)
def callback(request: pytest.FixtureRequest) -> Any:
    """Make each callback as Hydra does, without arguments."""
    return FACTORIES[request.param]()


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Make four runs."""
    return make_experiment(tmp_path / "sft", *FOUR)


def _seen(experiment: Experiment) -> Any:
    return deepcopy([{**vars(run), "spec": None, "paths": None, "error": str(run.error)} for run in experiment.runs])


def test_hooks_are_the_engines_and_take_what_it_gives(callback: Any) -> None:
    """A misspelt hook would never be called, and a parameter that the engine does not give would raise."""
    given = {
        name: set(inspect.signature(method).parameters) - {"self"}
        for name, method in vars(Callback).items()
        if name.startswith("on_")
    }
    hooks = {name: getattr(callback, name) for name in dir(callback) if name.startswith("on_")}
    assert hooks
    for name, method in hooks.items():
        assert name in given, f"{name} is no event of rfflow"
        assert set(inspect.signature(method).parameters) <= given[name], name


def test_a_whole_experiment_is_only_looked_at(callback: Any, experiment: Experiment, tmp_path: Path) -> None:
    """NaN, no metrics, a failure, a clone, a deleted run: all are shown, none changed, nothing is written elsewhere."""
    told = make_experiment(tmp_path / "alone", *FOUR)
    tell_whole(told)
    before = {*tmp_path.rglob("*")}
    tell_whole(experiment, callback)
    assert str(_seen(experiment)) == str(_seen(told))
    assert all(experiment.paths.root in (path, *path.parents) for path in {*tmp_path.rglob("*")} - before)
    assert not [path for path in experiment.paths.root.rglob("*") if path.name.endswith(".new")]


@pytest.mark.parametrize("turn", TURNS)
def test_an_experiment_may_break_off_anywhere(callback: Any, experiment: Experiment, turn: str) -> None:
    """After an exception, and the end that may follow it, streams and threads are as they were."""
    streams, threads = (sys.stdout, sys.stderr), threading.active_count()
    story = Story(experiment, callback)
    for reached in story.tell():
        if reached == turn:
            break
    story.call("on_exception", error=KeyboardInterrupt())
    assert (sys.stdout, sys.stderr) == streams
    assert threading.active_count() == threads
    story.end()
    assert (sys.stdout, sys.stderr) == streams


def test_an_experiment_that_never_starts_leaves_nothing(callback: Any, experiment: Experiment) -> None:
    """A mistake found before training is reported by the engine; no half-made files lie about."""
    Story(experiment, callback).call("on_exception", error=ValueError("lr is -1"))
    assert not experiment.paths.root.exists()


def test_an_experiment_may_go_on_after_its_end(callback: Any, experiment: Experiment) -> None:
    """The engine may be asked for more runs after it has said that the experiment has ended."""
    story = tell_whole(experiment, callback)
    late = add_run(experiment, ("lr=7e-7",))
    story.begin()
    story.chunk(late, {"loss": 1.5})
    story.complete(late)
    story.end()


def test_importing_what_needs_no_torch_is_quick() -> None:
    """Only the TensorBoard logger may bring torch along; matplotlib comes when there is something to draw."""
    modules = [target.rpartition(".")[0] for name, target in TARGETS.items() if name != "tensorboard"]
    heavy = {"torch", "matplotlib", "tensorboard", "lightning_fabric"}
    code = f"import sys, {', '.join(modules)}; print({heavy} & {{*sys.modules}} or 'none')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "none"
