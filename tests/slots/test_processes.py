"""Runs on several processes of this machine: they count, so that what is tested is the way there and back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.config.spec import BuiltSpec, CheckpointSpec
from rfflow.engine.engine import Engine
from rfflow.engine.interruption import Interrupted
from rfflow.engine.restoring import take_up
from rfflow.errors import ConfigError, EngineError
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.processes import ProcessSlots
from tests.support.counting import leave_a_child
from tests.support.toy import put, quick_inbox, toy_engine, toy_spec

__all__ = ["quick_inbox"]

CHUNKS = 4
ALL = [(run, chunk) for run in range(4) for chunk in range(1, CHUNKS + 1)]


class Watch(Callback):
    """Notes which chunks have ended, in order, and does something at one of them."""

    def __init__(self, at: int = 0, do: Callable[[], None] = lambda: None):
        self.chunks: list[tuple[int, int]] = []
        self._at = at
        self._do = do

    def on_chunk_end(self, experiment: Experiment, run: Run) -> None:
        self.chunks.append((run.number, len(run.chunks)))
        if len(self.chunks) == self._at:
            self._do()


def make(root: Path, *callbacks: Callback, processes: int = 2, runs: int = 4, **settings: Any) -> Engine:
    specs = [toy_spec(CHUNKS, **(settings if number == 0 else {})) for number in range(runs)]
    return toy_engine(root, specs, callbacks, processes=processes)


def states(engine: Engine) -> list[RunState]:
    return [run.state for run in engine.experiment.runs]


def ends(root: Path) -> list[str]:
    """Return what each run has counted."""
    return [path.read_text() for path in sorted(root.glob("runs/*/final"))]


def slots_of(engine: Engine) -> ProcessSlots:
    assert isinstance(engine.slots, ProcessSlots)
    return engine.slots


def kill(engine: Engine, slot: int) -> None:
    pid = slots_of(engine).pid(slot)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the runs have counted at the end where one process had all of them."""
    root = tmp_path_factory.mktemp("expected")
    engine = make(root, processes=1)
    engine.run()
    engine.close()
    return ends(root)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "experiment"


def test_all_runs_are_trained_side_by_side(root: Path, expected: list[str]) -> None:
    watch = Watch()
    engine = make(root, watch)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    assert sorted(watch.chunks) == ALL


@pytest.mark.parametrize("is_allowed", [True, False], ids=["", "where no process can be watched"])
def test_a_killed_worker_costs_nothing_but_time(
    root: Path, expected: list[str], caplog: Any, monkeypatch: pytest.MonkeyPatch, is_allowed: bool
) -> None:
    if not is_allowed:

        def refuse(pid: int) -> int:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "pidfd_open", refuse)
    watch = Watch(6, lambda: kill(engine, 1))
    engine = make(root, watch)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    assert sorted(watch.chunks) == ALL, "a chunk was told twice, or never"
    assert "The worker of slot 1 is lost" in caplog.text and "was killed by signal 9" in caplog.text


def test_what_is_nowhere_on_the_disk_does_not_move(root: Path) -> None:
    """Without checkpoints a run would begin anew elsewhere, and log everything again."""
    logged: list[tuple[int, int]] = []

    class Hears(Callback):
        def on_log(self, experiment: Experiment, run: Run, metrics: Any, step: int) -> None:
            logged.append((run.number, step))

    specs = [toy_spec(chunks) for chunks in (4, 1, 4, 1)]
    engine = toy_engine(root, specs, [Hears()], processes=2, checkpoint=CheckpointSpec(every=None))
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4
    assert sorted(logged) == [(run, step) for run, spec in enumerate(specs) for step in range(1, 3 * spec.chunks + 1)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_engine_in_order_leaves_its_workers_alone(
    root: Path, expected: list[str], number: int, caplog: Any
) -> None:
    """A terminal that is closed, or a scheduler, signals every process there is; the engine decides what is left."""

    def signal_all() -> None:
        for slot in (0, 1):
            pid = slots_of(engine).pid(slot)
            assert pid is not None
            os.kill(pid, number)

    engine = make(root, Watch(3, signal_all))
    engine.run()
    engine.close()
    assert ends(root) == expected and "is lost" not in caplog.text


def test_a_run_whose_workers_die_again_and_again_has_failed(root: Path) -> None:
    """It is the run that kills them, and the others train to their ends."""
    engine = make(root, exits_at=1)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.FAILED] + [RunState.COMPLETED] * 3
    assert "workers are lost again and again while it trains" in str(engine.experiment.runs[0].error)


def test_when_every_slot_is_lost_the_experiment_ends_and_can_be_gone_on_with(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rfflow.engine.losses.MOST_LOSSES", 0)
    watch = Watch(5, lambda: [kill(engine, slot) for slot in (0, 1)] and None)
    engine = make(root, watch)
    with pytest.raises(EngineError, match=r"Every slot was lost.*resume="):
        engine.run()
    engine.close()
    assert ExperimentPaths(root).state.exists()


def test_a_run_that_raises_fails_alone(root: Path, expected: list[str]) -> None:
    engine = make(root, fails_at=2)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.FAILED] + [RunState.COMPLETED] * 3 and ends(root) == expected[1:]


def test_a_signal_saves_everywhere_and_another_number_of_devices_goes_on(root: Path, expected: list[str]) -> None:
    engine = make(root, Watch(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted):
        engine.run()
    engine.close()
    state = experiment_file.read(ExperimentPaths(root).state)
    assert state is not None
    again = make(root, processes=3)
    again.go_on(state)
    for run in again.experiment.runs:
        record = state.run(run.number)
        assert record is not None
        take_up(again, run, record)
    again.run()
    again.close()
    assert states(again) == [RunState.COMPLETED] * 4 and ends(root) == expected


@pytest.mark.usefixtures("quick_inbox")
def test_an_op_waits_for_the_runs_that_it_names(root: Path) -> None:
    """Others train on; it is applied at a boundary of each, and answered once."""
    control, seen = root / "control", []

    def ask() -> None:
        seen.append(json.loads((control / "status.json").read_text()))
        put(control, "1.yaml", [{"op": "stop", "run": [0, 1]}, {"op": "delete", "run": 3}])

    engine = make(root, Watch(2, ask))
    engine.run()
    engine.close()
    assert states(engine) == [RunState.STOPPED, RunState.STOPPED, RunState.COMPLETED, RunState.DELETED]
    assert [path.name for path in (control / "done").glob("*.yaml")] == ["1.yaml"]
    assert seen[0]["slots"] == 2 and {run["slot"] for run in seen[0]["runs"] if run["since"]} <= {0, 1}
    assert any(run["since"] for run in seen[0]["runs"]), "nobody is shown to train"
    lines = [json.loads(line) for line in (root / "ops.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and {line["slot"] for line in lines} <= {0, 1}


@pytest.mark.usefixtures("quick_inbox")
def test_runs_are_ranked_when_they_have_come_equally_far(root: Path) -> None:
    """Whoever is a turn ahead waits for the others, and they train on."""
    document = {"op": "stop", "run": {"worst": 1, "by": "eval_loss"}}
    come_to: list[int] = []

    class OnOp(Callback):
        def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
            come_to.extend(len(run.chunks) for run in experiment.runs)

    engine = make(root, Watch(6, lambda: put(root / "control", "1.yaml", document) and None), OnOp(), runs=5)
    engine.run()
    engine.close()
    assert len(come_to) == 5 and len(set(come_to)) == 1 and states(engine).count(RunState.STOPPED) == 1


@pytest.mark.usefixtures("quick_inbox")
def test_a_clone_is_made_while_others_train(root: Path) -> None:
    control = root / "control"
    watch = Watch(3, lambda: put(control, "1.yaml", {"op": "clone", "run": 0, "overrides": ["lr=3"]}) and None)
    engine = make(root, watch)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 5 and engine.experiment.runs[4].parent == 0


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make little of a silence, and nothing of workers that were ended wrongly because this machine is busy."""
    for name in ("LEAST", "LEAST_OF_A_BUILD"):
        monkeypatch.setattr(f"rfflow.engine.silence.{name}", 0.5)
    for name in ("MOST_LOSSES", "MOST_LOSSES_BY_A_BUILD"):
        monkeypatch.setattr(f"rfflow.engine.losses.{name}", 1000)
    monkeypatch.setattr("rfflow.engine.listening._WATCH", 0.05)


def test_a_hung_worker_is_replaced(root: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped dead, it is silent; how long is too long is told by the chunks before."""
    be_impatient(monkeypatch)

    def freeze() -> None:
        pid = slots_of(engine).pid(1)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

    engine = make(root, Watch(6, freeze))
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected


@pytest.mark.parametrize("where", ["here", pytest.param("there", marks=pytest.mark.slow)])
def test_what_cannot_travel_is_refused_before_training(root: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app may build its trainers with a function that no other process can import."""

    def build() -> None: ...

    if where == "there":  # pickled by its name, which means nothing in the worker
        build.__qualname__ = "made_in_a_notebook"
        monkeypatch.setattr(sys.modules[__name__], "made_in_a_notebook", build, raising=False)
    spec = BuiltSpec(chunks=CHUNKS, build=build)
    engine = toy_engine(root, [toy_spec(CHUNKS), spec], processes=2)
    with pytest.raises(ConfigError, match=r"Run 1 cannot be given to another process.*engine.devices=1"):
        engine.run()
    engine.close()


RULES = [
    {"name": "cull", "at_chunk": 1, "select": {"worst": 1, "by": "eval_loss"}, "do": "stop"},
    {"name": "grow", "at_chunk": 2, "select": {"best": 1, "by": "eval_loss"}, "do": "clone", "overrides": ["lr=3"]},
]
POLICIES = {
    "rules": {"_target_": "rfflow.policies.Rules", "rules": RULES},
    "halving": {"_target_": "rfflow.policies.Halving"},
    "population": {
        "_target_": "rfflow.policies.Rules",
        "rules": [
            {"name": "exploit", "every": 2, "select": {"worst": "25%"}, "do": "stop"},
            {
                "name": "explore",
                "every": 2,
                "select": {"best": "12%"},
                "do": "clone",
                "overrides": ["lr=2,3"],
                "times": 2,
            },
        ],
    },
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.usefixtures("quick_inbox")
def test_a_policy_decides_as_on_one_device(root: Path, name: str) -> None:
    """Rules that look at a chunk miss nobody who has gone on meanwhile."""

    def decided(processes: int) -> list[tuple[str, int | None, int | None]]:
        place = root / str(processes)
        engine = toy_engine(place, [toy_spec(CHUNKS) for _ in range(5)], processes=processes, policy=POLICIES[name])
        engine.run()
        engine.close()
        lines = [json.loads(line) for line in (place / "ops.jsonl").read_text().splitlines()]
        return [(line["op"], line["run"], line["chunk"]) for line in lines]

    alone = decided(1)
    assert alone and decided(2) == alone


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Path]:
    """Where processes note whom they leave behind, who are ended at last."""
    pids = tmp_path / "children"
    yield pids
    for pid in pids.read_text().split() if pids.exists() else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_that_a_worker_is_gone_is_heard_although_what_it_has_forked_is_not(
    root: Path, expected: list[str], children: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Processes of a run's data, or of a reward: they hold open what their parent had open."""
    killed: list[float] = []

    def kill_it() -> None:
        kill(engine, 1)
        killed.append(time.time())

    specs = [toy_spec(CHUNKS)] * 4
    forks = {slot: {"TOY_FORKS": str(children)} for slot in (0, 1)}
    engine = toy_engine(root, specs, [Watch(6, kill_it)], processes=2, environments=forks)
    engine.run()
    engine.close()
    assert states(engine) == [RunState.COMPLETED] * 4 and ends(root) == expected
    (heard,) = [record.created for record in caplog.records if "is lost" in record.getMessage()]
    assert heard - killed[0] < 30 and time.time() - killed[0] < 50, "it was waited for whom it has left behind"


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that is left"])
def test_workers_do_not_outlive_the_engine(root: Path, forks: bool, children: Path) -> None:
    """Killed outright, it leaves nobody behind that would write to the experiment's directory."""
    told = root.parent / "pids"

    def die() -> None:
        told.write_text(" ".join(str(slots_of(engine).pid(slot)) for slot in (0, 1)))
        if forks:
            leave_a_child(children)
        os.kill(os.getpid(), signal.SIGKILL)

    engine = make(root, Watch(3, die))
    child = os.fork()
    if child == 0:
        try:
            engine.run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    pids = [int(word) for word in told.read_text().split()]
    until = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "a worker is still there"
        time.sleep(0.01)  # nothing tells when a process is gone that is nobody's child any more


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
