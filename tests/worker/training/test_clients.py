"""What trackers keep one of a process is the run's own, or is refused before training."""

from __future__ import annotations

import contextvars
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from transformers import TrainerCallback

from rfflow.config.spec import BuiltSpec, MemorySpec, RunSpec
from rfflow.errors import ConfigError
from rfflow.runs.events import Finished
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run
from rfflow.worker.shared import Shared
from rfflow.worker.training import clients
from rfflow.worker.training.build import build_trainer
from rfflow.worker.training.session import TrainingSession
from tests.support.tiny import run_spec

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))  # Trackio reads it once, when it is imported

# As much of wandb as transformers' callback calls, and as it keeps of its active run.
WANDB = {
    "__init__.py": """
from wandb.sdk import wandb_setup
from wandb.sdk.lib import module
class Run:
    def __init__(self):
        self.id, self.config, self.summary, self.logged = str(id(self)), {}, {}, []
        self.config = Config()
    def log(self, values):
        self.logged.append(values)
    def define_metric(self, *args, **kwargs):
        pass
    def _label(self, code):
        pass
class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)
made = []
def init(project, **kwargs):
    setup = wandb_setup._singleton = wandb_setup._singleton or wandb_setup._Setup()
    if not setup._active_runs:
        made.append(Run())
        setup._active_runs.append(made[-1])
    new = setup._active_runs[-1]
    module.set_global(new, new.config, new.log, new.summary, new.define_metric)
    return new
module.unset_globals()
""",
    "sdk/__init__.py": "",
    "sdk/wandb_setup.py": """
class _Setup:
    def __init__(self):
        self._active_runs = []
_singleton = None
""",
    "sdk/lib/__init__.py": "",
    "sdk/lib/config_util.py": "class ConfigError(Exception): pass",
    "sdk/lib/module.py": """
import wandb
def set_global(run=None, config=None, log=None, summary=None, define_metric=None):
    wandb.run, wandb.config, wandb.log, wandb.summary, wandb.define_metric = run, config, log, summary, define_metric
def unset_globals():
    set_global()
""",
}


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Make an empty wandb that can be imported; return what returns the module."""
    for name, text in WANDB.items():
        (tmp_path / "path" / "wandb" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "path" / "wandb" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    clients._wandb_names.cache_clear()
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "wandb"}
    yield lambda: sys.modules["wandb"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    sys.modules.update(before)
    clients._wandb_names.cache_clear()


@pytest.fixture
def shared() -> Shared:
    return Shared(Fabric(accelerator="cpu", devices=1), MemorySpec(), 42)


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> Callable[..., RunSpec]:
    return functools.partial(run_spec, tiny_model, tiny_data, dataset={"max_samples": 16})


def prepare(shared: Shared, tmp_path: Path, *specs: RunSpec) -> list[TrainingSession]:
    """Prepare runs, one after the other."""
    sessions = []
    for number, spec in enumerate(specs):
        run = Run(number, spec, (), RunPaths(tmp_path / f"runs/{number}"))
        sessions.append(TrainingSession(run.card(), shared))
        sessions[-1].prepare()
    return sessions


def train(sessions: list[TrainingSession]) -> None:
    """Train runs in turns to their ends."""
    left = list(sessions)
    while left:
        for session in list(left):
            if isinstance(session.advance(), Finished):
                left.remove(session)
                session.close()


def losses(logged: list[Any]) -> list[float]:
    return [values["train/loss"] for values in logged if "train/loss" in values]


def test_each_run_reports_to_a_wandb_run_of_its_own(
    wandb: Callable[[], Any], shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec]
) -> None:
    """Though transformers goes on with whatever run is active, and imports wandb only when the first run is built."""
    specs = [spec(args={"report_to": "wandb", "learning_rate": lr}) for lr in (1e-2, 1e-3, 1e-2)]
    train(prepare(shared, tmp_path, *specs))
    module = wandb()
    first, second, third = module.made
    assert [run.config["learning_rate"] for run in module.made] == [1e-2, 1e-3, 1e-2]
    assert len(losses(first.logged)) == 4 and losses(first.logged) == losses(third.logged) != losses(second.logged)
    assert module.run is None and module.log is None, "and none is active outside"


def test_runs_that_would_share_a_wandb_run_are_refused(
    wandb: Callable[[], Any], shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec]
) -> None:
    """One that was begun before training is every run's, if two of them report there."""
    import wandb as module  # type: ignore[import-not-found,unused-ignore]

    active = module.init("mine")
    (alone,) = prepare(shared, tmp_path, spec(args={"report_to": "wandb"}))
    with pytest.raises(ConfigError, match=rf"Runs 0 and 1 both report to one and the same run of wandb \({active.id}"):
        prepare(shared, tmp_path, spec(), spec(args={"report_to": "wandb"}))
    train([alone])
    assert len(losses(active.logged)) == 4 and module.run is active


def test_curves_in_one_directory_are_refused(
    shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec(args={"report_to": "tensorboard"})] * 2
    prepare(shared, tmp_path, *specs)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    with pytest.raises(ConfigError, match=f"both write TensorBoard's events to {tmp_path}/events, .*Unset TENSORB"):
        prepare(shared, tmp_path / "again", *specs)


NOTED: contextvars.ContextVar[int] = contextvars.ContextVar("noted", default=-1)


class Notes(TrainerCallback):
    """Keeps what it notes in a context variable, as trackio keeps its active run."""

    seen: list[tuple[int, int, float | str]] = []

    def __init__(self, number: int):
        self.number = number
        NOTED.set(number)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        assert NOTED.get() == self.number
        NOTED.set(self.number + 10)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append((self.number, NOTED.get(), np.geterr()["invalid"]))


def test_context_variables_are_a_runs_own(shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec]) -> None:
    """From when its trainer is built; and numpy's way with errors, which is one of them, is as it is outside."""
    nodes = [{"_target_": "tests.worker.training.test_clients.Notes", "number": number} for number in range(2)]
    specs = [spec() for _ in nodes]
    specs = [_with_callback(one, node) for one, node in zip(specs, nodes, strict=True)]
    Notes.seen.clear()
    with np.errstate(invalid="raise"):
        train(prepare(shared, tmp_path, *specs))
    assert NOTED.get() == -1
    assert set(Notes.seen) == {(0, 10, "raise"), (1, 11, "raise")} and len(Notes.seen) == 8


def _with_callback(spec: RunSpec, node: dict[str, Any]) -> RunSpec:
    return replace(spec, trainer=replace(spec.trainer, callbacks=(node,)))


def test_apps_are_told_what_their_runs_would_share(
    shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec]
) -> None:
    """What a function of the user's builds is known once it is built."""

    def build() -> Any:
        one = spec(args={"save_strategy": "steps"})
        base, data = shared.bases.get(one.model), shared.data(one.dataset, one.trainer)
        return build_trainer(one, base, data, tmp_path / "one for all", torch.device("cpu"))

    with pytest.raises(ConfigError, match=r"Runs 0 and 1 both write to trainer\.args\.output_dir .*/one for all, "):
        prepare(shared, tmp_path, *[BuiltSpec(chunks=1, build=build)] * 2)


def test_what_a_run_used_is_free_when_it_has_ended(
    shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that knows one run a process may have them one after the other; a directory stays the first one's."""
    monkeypatch.setattr("rfflow.config.claims.ONE_A_PROCESS", {"tensorboard": "is said to have one run a process"})
    taken = spec(args={"report_to": "tensorboard", "save_strategy": "steps"})
    (first,) = prepare(shared, tmp_path, taken)
    second = TrainingSession(Run(1, taken, (), RunPaths(tmp_path / "runs/1")).card(), shared)
    with pytest.raises(ConfigError, match="Runs 0 and 1 both report to tensorboard, which is said to have one run"):
        second.prepare()
    train([first])
    second.prepare()
    same = {"output_dir": str(first.run.paths.checkpoints), "save_strategy": "steps"}
    third = TrainingSession(Run(2, spec(args=same), (), RunPaths(tmp_path / "x")), shared)
    with pytest.raises(ConfigError, match="Runs 0 and 2 both write to"):
        third.prepare()


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that trackers keep stay in the test's folder."""
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/runs.db",
    }.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_real_libraries_keep_the_runs_apart(
    name: str, shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec]
) -> None:
    """Where one is installed; nothing leaves the machine."""
    module = pytest.importorskip(name)
    specs = [spec(args={"report_to": name, "learning_rate": lr, "run_name": str(lr)}) for lr in (1e-2, 1e-3)]
    train(prepare(shared, tmp_path, *specs))
    if name == "wandb":
        assert module.run is None and len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    elif name == "mlflow":
        runs = module.search_runs(search_all_experiments=True, output_format="list")
        ended = {run.data.params["learning_rate"]: run.info.status for run in runs}
        assert ended == {"0.01": "FINISHED", "0.001": "FINISHED"} and module.active_run() is None
        client = module.MlflowClient()
        assert [len(client.get_metric_history(run.info.run_id, "loss")) for run in runs] == [4, 4]


@pytest.mark.usefixtures("at_home")
@pytest.mark.slow  # three trackers are imported and begin
def test_reporting_to_all_that_is_installed_mixes_no_runs(
    shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has one of its own in every tracker that is there; nothing leaves the machine."""
    wandb, mlflow, trackio = (pytest.importorskip(name) for name in ("wandb", "mlflow", "trackio"))
    begun, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda *args, **kwargs: begun.append(init(*args, **kwargs)) or begun[-1])
    given = {"report_to": "all", "project": f"all-{tmp_path.name}"}
    specs = [spec(args={**given, "learning_rate": lr}) for lr in (1e-2, 1e-3)]
    sessions = prepare(shared, tmp_path, *specs)
    assert {"mlflow", "tensorboard", "trackio", "wandb"} <= {*sessions[0].coroutine.trainer.args.report_to}
    train(sessions)
    assert wandb.run is None and mlflow.active_run() is None
    assert len({run.id for run in begun}) == len(begun) == 2
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    client = mlflow.MlflowClient()
    assert sorted(run.data.params["learning_rate"] for run in runs) == ["0.001", "0.01"]
    assert [len(client.get_metric_history(run.info.run_id, "loss")) for run in runs] == [4, 4]
    assert len({*tmp_path.glob("runs/*/checkpoints/**/events.out.*")}) == 2
    theirs = list(trackio.Api().runs(given["project"]))
    assert len({run.id for run in theirs}) == 2, "though they may be called alike"


def test_reporting_to_all_is_refused_where_that_would_mix_runs(
    shared: Shared, tmp_path: Path, spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as one is installed that has one run a process."""
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["comet_ml"])
    monkeypatch.setitem(clients.INTEGRATION_TO_CALLBACK, "comet_ml", TrainerCallback)
    with pytest.raises(ConfigError, match=r"Runs 0 and 1 both report to comet_ml, .*'loggers=\[default,wandb\]'"):
        prepare(shared, tmp_path, *[spec(args={"report_to": "all"})] * 2)
