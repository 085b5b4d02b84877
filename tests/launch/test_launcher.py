"""What the launcher makes of the jobs of a sweep; the engine behind it trains nothing here."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

import rfflow
from rfflow.config.spec import DatasetSpec, ModelSpec, RunSpec, TrainerSpec, TrainSpec
from rfflow.engine.cloning import Cloner
from rfflow.errors import ConfigError, OpError, RunFailed
from rfflow.launch import start
from rfflow.runs.run import Run
from tests.support.stub_engine import StubEngine

RUN = TrainSpec(
    model=ModelSpec("tiny"),
    dataset=DatasetSpec(path="rows.jsonl"),
    trainer=TrainerSpec("trl.SFTTrainer", "trl.SFTConfig"),
    peft=None,
    chunks=2,
)

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


class Ends(Callback):
    """Hydra callbacks that note when a job ended, and how."""

    seen: list[tuple[int, JobStatus, Any]] = []
    places: list[Path] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self.seen.append((HydraConfig.get().job.num, job_return.status, job_return._return_value))
        self.places.append(Path.cwd())


class App:
    """A Hydra application with a key ``x``, swept under our launcher."""

    def __init__(self, folder: Path, engine: StubEngine | None):
        self.engine = engine
        self.folder = folder
        self.made = 0
        conf = folder / "conf"
        conf.mkdir()
        (conf / "config.yaml").write_text(
            "defaults:\n- override hydra/launcher: rfflow\n- _self_\nx: 0\nname: app\n"
            f"hydra:\n  sweep: {{dir: {folder}/out, subdir: 'runs/${{hydra.job.num}}'}}\n"
            "  callbacks: {ends: {_target_: tests.launch.test_launcher.Ends}}\n"
        )

    def make_engine(self, *args: Any) -> StubEngine:
        self.made += 1
        if self.engine is None:
            self.engine = StubEngine(*args)
        self.engine.spec, self.engine.paths, self.engine.composer = args
        return self.engine

    def sweep(self, task: Callable[[DictConfig], Any], *overrides: str) -> list[JobReturn]:
        with initialize_config_dir(str(self.folder / "conf"), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            batches = hydra.multirun("config", task, ["hydra.mode=MULTIRUN", *overrides], with_log_configuration=False)
        return [result for batch in batches for result in batch]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    Ends.seen, Ends.places = [], []
    app = App(tmp_path, None)
    monkeypatch.setattr(start, "make_engine", app.make_engine)
    return app


@pytest.fixture
def app_with_engine(app: App) -> App:
    app.engine = StubEngine(None, None, None)  # type: ignore[arg-type]
    return app


def run_of(cfg: DictConfig) -> RunSpec:
    return RUN


def test_a_job_returns_the_objective_of_its_run(app: App) -> None:
    results = app.sweep(run_of, "x=1,2,3")
    assert [(result.status, result.return_value) for result in results] == [(JobStatus.COMPLETED, n) for n in (0, 1, 2)]


def test_one_of_several_processes_makes_no_directory(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an app of one's own, too: the second would write into the first one's."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="rfflow was started as 2 processes"):
        app.sweep(run_of, "x=1,2,3")
    assert not (app.folder / "out").exists() and not app.made


def test_runs_are_named_by_what_sets_them_apart(app: App) -> None:
    app.sweep(run_of, "x=1,2", "+y=[q, v]", "+z='a b',c")
    assert app.engine is not None
    assert [run.label for run in app.engine.runs] == ["x=1 +z='a b'", "x=1 +z=c", "x=2 +z='a b'", "x=2 +z=c"]


def test_a_job_ends_when_its_run_has_ended_and_not_before(app_with_engine: App) -> None:
    """on_job_end is what other tools of Hydra's hear; a run that failed has to arrive there as failed."""
    engine = app_with_engine.engine
    assert engine is not None
    engine.failing = {1: ValueError("loss is NaN")}
    ended_while_training: list[Any] = []
    train = engine.run
    engine.run = lambda: (ended_while_training.extend(Ends.seen), train())[1]  # type: ignore[method-assign]
    with pytest.raises(RunFailed):
        app_with_engine.sweep(run_of, "x=1,2,3")
    assert ended_while_training == []
    assert [(number, status) for number, status, _ in Ends.seen] == [
        (0, JobStatus.COMPLETED),
        (1, JobStatus.FAILED),
        (2, JobStatus.COMPLETED),
    ]


PICKLE = "+hydra.callbacks.pickle._target_=hydra.experimental.callbacks.PickleJobInfoCallback"


def pickled(folder: Path) -> dict[str, Any]:
    """Return what Hydra's own callback, which notes a directory when a job starts, has written when each job ended."""
    files = {path.parents[1].name: path for path in folder.glob("out/*/*/.hydra/job_return.pickle")}
    return {number: pickle.loads(path.read_bytes()) for number, path in sorted(files.items())}


def test_every_job_ends_with_what_a_callback_noted_when_it_started(cloning: App) -> None:
    """Clones and later batches included, though all jobs of a batch start before the first ends."""
    cloning.sweep(run_of, "x=1,2,3", PICKLE, "hydra.sweeper.max_batch_size=2")
    assert {number: (job.return_value, job.overrides) for number, job in pickled(cloning.folder).items()} == {
        "0": (0, ["x=1"]),
        "1": (1, ["x=2"]),
        "2": (2, ["x=7"]),
        "3": (3, ["x=3"]),
        "4": (4, ["x=7"]),
    }


def test_a_job_ends_where_it_stood(app: App) -> None:
    """A callback may name its files from there."""
    app.sweep(run_of, "x=1,2", "hydra.job.chdir=true")
    assert [path.name for path in Ends.places] == ["0", "1"]


def test_a_failed_run_is_named_with_its_error_and_its_log(app_with_engine: App) -> None:
    assert app_with_engine.engine is not None
    error = app_with_engine.engine.failing[1] = ValueError("loss is NaN\nat step 3")
    with pytest.raises(RunFailed) as failed:
        app_with_engine.sweep(run_of, "x=1,2,3")
    sentence, trace = str(failed.value).splitlines()
    assert sentence == "Run 1 (x=2) failed: ValueError: loss is NaN"
    assert trace == f"Its trace: {app_with_engine.folder}/out/runs/1/run.log"
    assert failed.value.__cause__ is error


def test_batches_add_their_runs_to_one_experiment(app: App) -> None:
    app.sweep(run_of, "x=1,2,3", "hydra.sweeper.max_batch_size=2")
    assert app.engine is not None
    assert [run.number for run in app.engine.runs] == [0, 1, 2]
    assert (app.made, app.engine.closed) == (1, 2)


def test_a_run_is_added_under_its_own_hydra_config(app: App) -> None:
    app.sweep(run_of, "x=1,2")
    assert app.engine is not None
    assert app.engine.job_numbers == [0, 1]
    assert HydraConfig.instance().cfg is None, "and it is taken away again"


def test_runs_lie_where_the_application_puts_its_jobs(app: App) -> None:
    app.sweep(run_of, "x=1,2")
    app.sweep(run_of, "x=1,2", "hydra.sweep.subdir=${x}")
    assert app.engine is not None
    assert [run.paths.root.relative_to(app.folder).as_posix() for run in app.engine.runs] == [
        "out/runs/0",
        "out/runs/1",
        "out/1",
        "out/2",
    ]


def test_a_configuration_that_cannot_be_stops_everything_before_training(app: App) -> None:
    def task(cfg: DictConfig) -> RunSpec:
        if cfg.x == 2:
            raise ConfigError("x is 2.")
        return RUN

    with pytest.raises(ConfigError, match=r"^x is 2\.$"):
        app.sweep(task, "x=1,2,3")
    assert app.engine is None
    assert [(number, status) for number, status, _ in Ends.seen] == [(1, JobStatus.FAILED), (0, JobStatus.FAILED)]


def test_what_the_engine_refuses_before_training_is_said_as_it_is(app_with_engine: App) -> None:
    assert app_with_engine.engine is not None
    app_with_engine.engine.refusing = ConfigError("more chunks than steps")
    with pytest.raises(ConfigError, match="more chunks than steps"):
        app_with_engine.sweep(run_of, "x=1,2")
    assert [status for _, status, _ in Ends.seen] == [JobStatus.FAILED] * 2
    assert app_with_engine.engine.closed


@pytest.mark.parametrize("key, values", [("name", ("a", "b")), ("+objective.metric", ("loss", "eval_loss"))])
def test_what_belongs_to_the_experiment_cannot_be_swept(app: App, key: str, values: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        app.sweep(run_of, f"{key}={','.join(values)}")
    assert app.engine is None
    for word in (key.strip("+").partition(".")[0], *values, "run 0", "run 1"):
        assert word in str(refused.value)


def test_jobs_that_would_share_a_directory_are_refused_before_training(app: App) -> None:
    def task(cfg: DictConfig) -> RunSpec:
        return replace(RUN, trainer=replace(RUN.trainer, args={"output_dir": cfg.place}))

    with pytest.raises(ConfigError, match=r"^Runs 0 and 2 both write to trainer\.args\.output_dir .*/all, "):
        app.sweep(task, "+place=all,own,./all")
    assert app.engine is None
    app.sweep(task, "+place=all,own")
    app.sweep(task, "+place=all", "x=1,2", "hydra.job.chdir=true")  # each has its own in the job's directory


def test_an_ordinary_job_that_fails_lets_the_later_ones_go_on(app: App) -> None:
    """As under Hydra's own launcher: all jobs run, the sweep then raises the first error."""
    ran = []

    def task(cfg: DictConfig) -> int:
        ran.append(cfg.x)
        if cfg.x == 1:
            raise KeyError("x")
        return 7

    with pytest.raises(KeyError):
        app.sweep(task, "x=1,2")
    assert ran == [1, 2]
    assert [status for _, status, _ in Ends.seen] == [JobStatus.FAILED, JobStatus.COMPLETED]


def test_nothing_is_trained_beside_a_job_that_failed(app: App) -> None:
    """Its error is known now; hours later would be too late."""

    def task(cfg: DictConfig) -> RunSpec:
        if cfg.x == 2:
            raise KeyError("x")
        return RUN

    with pytest.raises(KeyError):
        app.sweep(task, "x=1,2")
    assert app.engine is None


def test_ordinary_values_are_handed_through(app: App) -> None:
    assert [result.return_value for result in app.sweep(lambda cfg: cfg.x * 10, "x=1,2")] == [10, 20]
    assert app.engine is None


class Cloning(StubEngine):
    """Clones run 0 each time it runs, as an op would."""

    own: tuple[str, ...] = ("x=7",)

    def run(self) -> None:
        super().run()
        number = len(self.runs)
        spec, label, hydra = self.composer.compose_clone(self.runs[0], self.own, number)
        assert hydra.hydra.job.num == number
        self.runs.append(Run(number, spec, label, self.paths.run(number), parent=0))
        super().run()


@pytest.fixture
def cloning(app: App) -> App:
    app.engine = Cloning(None, None, None)  # type: ignore[arg-type]
    return app


def test_a_clone_is_a_hydra_job_like_any_other(cloning: App) -> None:
    results = cloning.sweep(run_of, "x=1,2", "+y=a")
    assert cloning.engine is not None
    assert cloning.engine.runs[2].label == "x=7"
    written = cloning.folder / "out/runs/2/.hydra/overrides.yaml"
    assert written.read_text() == "- +y=a\n- x=7\n"
    assert [(number, status) for number, status, _ in Ends.seen] == [(n, JobStatus.COMPLETED) for n in (0, 1, 2)]
    assert len(results) == 2, "the sweeper gets the jobs that it asked for"


class NothingCanBeBuilt:
    """A builder to which no clone is right."""

    def enrol(self, run: Run, hydra: Any) -> None:
        """Nothing is built yet."""

    def prepare(self, run: Run, start: Any = None, **_: Any) -> Any:
        assert (run.paths.root / ".hydra/config.pickle").is_file()
        raise ConfigError("not like this")

    def give_up(self, run: Run) -> None:
        """There is nothing."""


class Refusing(StubEngine):
    """Is asked for a clone of run 0 that cannot be built."""

    def run(self) -> None:
        super().run()
        experiment: Any = SimpleNamespace(paths=self.paths, runs=self.runs)
        builder: Any = NothingCanBeBuilt()
        with pytest.raises(OpError, match="not like this"):
            Cloner(experiment, self.composer, builder).make(self.runs[0], ("x=7",), 2, warm_start=False)
        assert [(number, status) for number, status, _ in Ends.seen] == [(2, JobStatus.FAILED)], "and nothing later"


def test_a_clone_that_is_refused_has_ended_and_leaves_nothing(app: App) -> None:
    """What a callback writes when its job ends included."""
    app.engine = Refusing(None, None, None)  # type: ignore[arg-type]
    app.sweep(run_of, "x=1,2", PICKLE)
    assert [number for number, _, _ in Ends.seen] == [2, 0, 1]
    assert sorted(pickled(app.folder)) == ["0", "1"] and not (app.folder / "out/runs/2").exists()


def test_a_later_batch_leaves_the_clones_their_numbers(cloning: App) -> None:
    cloning.sweep(run_of, "x=1,2", "hydra.sweeper.max_batch_size=1")
    assert cloning.engine is not None
    assert [(run.number, run.label) for run in cloning.engine.runs] == [(0, "x=1"), (1, "x=7"), (2, "x=2"), (3, "x=7")]


def test_a_clone_that_failed_makes_the_sweep_fail(cloning: App) -> None:
    assert cloning.engine is not None
    cloning.engine.failing = {2: ValueError("loss is NaN")}
    with pytest.raises(RunFailed, match=r"^Run 2 \(x=7\) failed"):
        cloning.sweep(run_of, "x=1,2")
    assert [status for _, status, _ in Ends.seen] == [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.FAILED]


@pytest.mark.parametrize(
    "own, reason", [(("zz=1",), "zz"), (("x=[1",), "no viable alternative"), (("x=${nothing}",), "nothing")]
)
def test_overrides_that_do_not_compose_are_refused_as_on_the_command_line(
    cloning: App, own: tuple[str, ...], reason: str
) -> None:
    assert isinstance(cloning.engine, Cloning)
    cloning.engine.own = own

    def task(cfg: DictConfig) -> RunSpec:
        OmegaConf.resolve(cfg)
        return RUN

    with pytest.raises(HydraException, match=reason):
        cloning.sweep(task, "x=1,2")


def test_importing_rfflow_promises_what_it_lists() -> None:
    assert all(hasattr(rfflow, name) for name in rfflow.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rfflow.nonsense


@pytest.mark.parametrize("is_enabled", [True, False])
def test_importing_is_not_held_up_by_the_garbage_collector(is_enabled: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if is_enabled else gc.disable()
        with start._leaving_garbage():
            assert not gc.isenabled()
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable() if before else gc.disable()
        gc.unfreeze()


def test_what_composing_has_left_is_not_kept_for_good() -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    left = weakref.ref(Node())
    is_enabled = gc.isenabled()
    try:
        gc.disable()
        with start._leaving_garbage():
            assert left() is None
    finally:
        gc.enable() if is_enabled else gc.disable()
        gc.unfreeze()
