"""An experiment that is killed and gone on with ends as the one that was never killed."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.disk import unsaved
from rfflow.config.spec import CheckpointSpec
from rfflow.control.journal import Journal
from rfflow.control.ownership import Lock
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.tracking.metrics_log import MetricsLog
from rfflow.tracking.runs_csv import RunsTable
from rfflow.tracking.timeline import Timeline
from tests.support import chance
from tests.support.toy import Dies, put, quick_inbox, toy_engine, toy_spec, write_at_once

__all__ = ["quick_inbox"]

Ops = Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]

PLAN: Ops = {
    (0, 0): [{"op": "clone", "run": 0, "overrides": ["lr=2,3"], "warm_start": True}],
    (1, 1): [{"op": "stop", "run": 1}],
    (2, 1): [{"op": "resume", "run": 1}, {"op": "delete", "run": 3}],
    (0, 2): [{"op": "resume", "run": 2}],  # refused: it is not stopped
    (4, 0): [{"op": "stop", "run": 4}],
}


class Killed(BaseException):
    """Stands for SIGKILL: nobody gets to do anything about it."""


class Person(Callback):
    """Drops op files when a run has ended a chunk, each once however often the chunk is trained."""

    def __init__(self, plan: Ops = PLAN):
        self.plan = plan

    def on_experiment_start(self, experiment: Experiment) -> None:
        for run in experiment.runs:
            for chunk in range(len(run.chunks)):
                self.act(experiment, run.number, chunk)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        self.act(experiment, run.number, result.chunk)

    def act(self, experiment: Experiment, run: int, chunk: int) -> None:
        for index, op in enumerate(self.plan.get((run, chunk), ())):
            name, control = f"{run}-{chunk}-{index}.yaml", experiment.paths.control
            if not any(control.rglob(name)):
                try:
                    put(control, name, op)
                except OSError as error:  # what a person cannot ask for must not be missing in silence
                    raise unsaved("an op", error, experiment.paths.root) from error


def experiment(root: Path, plan: Ops = PLAN, *, checkpoint: CheckpointSpec | None = None, runs: int = 3) -> Engine:
    """Return a new experiment of toys, or one that goes on where ``root`` holds one."""
    state = experiment_file.read(ExperimentPaths(root).state)
    engine = toy_engine(
        root,
        callbacks=[RunsTable(), MetricsLog(), Timeline(picture=False), Person(plan)],
        checkpoint=checkpoint or CheckpointSpec(),
    )
    if state is None:
        for number in range(runs):
            engine.add(toy_spec(chunks=4, lr=number, starts=True), number, (f"lr={number}",))
        return engine
    restoring.go_on(engine, state)
    for record in state.runs:
        spec = toy_spec(**{"chunks": 4, **json.loads(record.config)})
        run = engine.add(spec, record.number, record.overrides)
        restoring.take_up(engine, run, record)
    restoring.put_in_order(engine, state)
    return engine


def play(root: Path, **kwargs: Any) -> Engine:
    engine = experiment(root, **kwargs)
    try:
        engine.run()
    finally:
        engine.close()
    return engine


def outcome(root: Path) -> dict[str, Any]:
    """Return what an experiment leaves, without clocks and inodes."""
    paths = ExperimentPaths(root)
    state = experiment_file.read(paths.state)
    assert state is not None
    with open(paths.runs_table) as file:
        header, *rows = csv.reader(file)
    hidden = [header.index(name) for name in ("seconds", "checkpoint")]
    table = [[cell for place, cell in enumerate(row) if place not in hidden] for row in (header, *rows)]
    timeline = json.loads(paths.timeline.read_text()) if paths.timeline.exists() else {"runs": [], "chunks": []}
    ops = [json.loads(line) for line in paths.ops.read_text().splitlines()] if paths.ops.exists() else []
    for op in ops:
        op["detail"] = op["detail"].replace(str(root), "")
        del op["time"], op["stamp"]
    return {
        "states": [(run.number, run.state, run.parent, run.first_chunk) for run in state.runs],
        "kept": [(run.overrides, run.error, run.metrics) for run in state.runs],
        "table": table,
        "runs": timeline["runs"],
        "timeline": sorted((c["run"], c["chunk"], c["step"], c["evaluation"] is None) for c in timeline["chunks"]),
        "ops": ops,
        "logs": {
            run.number: [
                {k: v for k, v in json.loads(line).items() if k != "time"}
                for line in paths.run(run.number).metrics.read_text().splitlines()
            ]
            for run in state.runs
            if paths.run(run.number).metrics.exists()
        },
        "weights": {
            run.number: load_file(paths.run(run.number).weights)["weights/steps"].tolist()
            for run in state.runs
            if paths.run(run.number).weights.exists()
        },
        "filed": sorted(
            str(path.relative_to(paths.control))
            for path in paths.control.rglob("*")
            if path.is_file() and path.name not in ("status.yaml", ".status.yaml.new")
        ),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        from tests.support.toy import settle_at_once

        settle_at_once(patch)
        root = tmp_path_factory.mktemp("uninterrupted") / "experiment"
        play(root)
    return outcome(root)


def test_the_plan_comes_to_pass(uninterrupted: dict[str, Any]) -> None:
    """The experiment that all others are compared with has what they are about."""
    states = {number: state for number, state, _, _ in uninterrupted["states"]}
    assert states == {
        0: RunState.COMPLETED,
        1: RunState.COMPLETED,
        2: RunState.COMPLETED,
        3: RunState.DELETED,
        4: RunState.STOPPED,
    }
    assert [(op["op"], op["outcome"]) for op in uninterrupted["ops"]].count(("resume", "refused")) == 1
    assert uninterrupted["states"][3][2:] == (0, 1)


class Disk:
    """Counts what is done to files, and dies at the n-th operation: from there on nothing reaches the disk."""

    FUNCTIONS = (
        (os, "replace"),
        (os, "rename"),
        (os, "fsync"),
        (os, "link"),
        (os, "mkdir"),
        (shutil, "rmtree"),
        (Path, "write_text"),
        (Path, "write_bytes"),
    )

    def __init__(
        self, dies_at: int | None = None, error: Callable[[], BaseException] = Killed, *, overlaps: bool = False
    ):
        """Count from 1.

        Args:
            dies_at: the operation.
            error: what it raises; other errors than being killed come once.
            overlaps: whether checkpoints are written while other runs train, as they are outside of tests: then it
                depends on the machine which operation is the n-th.
        """
        self.count = 0
        self.overlaps = overlaps
        self.dies_at = dies_at
        self.error = error
        self.stays_dead = error is Killed

    def __enter__(self) -> Disk:
        self._patch = pytest.MonkeyPatch()
        for owner, name in self.FUNCTIONS:
            self._patch.setattr(owner, name, self._counted(getattr(owner, name)))
        if not self.overlaps:
            write_at_once(self._patch)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.dies_at is not None:
                is_dead = self.count > self.dies_at and self.stays_dead
                if self.count == self.dies_at or is_dead:
                    error = self.error()
                    if isinstance(error, OSError) and kwargs.get("ignore_errors"):
                        return None
                    raise error
            return function(*args, **kwargs)

        return call


def operations(root: Path) -> int:
    """Count the operations of the whole experiment."""
    with Disk() as disk:
        play(root)
    return disk.count


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (first[key], second[key]) for key in first if first[key] != second[key]}


@contextlib.contextmanager
def locks_die_with_the_process() -> Iterator[None]:
    """Close what the kernel closes when a process is killed."""
    held: list[Lock] = []
    acquire = Lock.acquire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lock, "acquire", lambda lock: (held.append(lock), acquire(lock))[1])
        try:
            yield
        finally:
            for lock in held:
                if lock._file is not None:
                    os.close(lock._file)
                    lock._file = None


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die_and_go_on(root: Path, dies_at: Sequence[int], *, overlaps: bool = False, **kwargs: Any) -> None:
    """Kill the experiment at these operations, process after process, and let the last one end in peace.

    At a negative number it is not killed: the disk is full for a moment.
    """
    for number in dies_at:
        if number > 0:
            disk, end = Disk(number, overlaps=overlaps), contextlib.suppress(Killed)
        else:
            disk, end = Disk(-number, no_room, overlaps=overlaps), contextlib.suppress(EngineError, ConfigError)
        with disk, end, locks_die_with_the_process():
            play(root, **kwargs)
    play(root, **kwargs)


@pytest.mark.usefixtures("quick_inbox")
def test_killed_at_any_file_operation_it_ends_as_if_it_had_not_been(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """Also in the middle of a checkpoint, of an op and of its journal line: nothing accepted is lost or doubled."""
    total = operations(tmp_path / "counted")
    draw = random.Random(chance.seed())
    for dies_at in sorted(draw.sample(range(1, total), 12)):
        root = tmp_path / str(dies_at)
        die_and_go_on(root, [dies_at])
        assert not differences(uninterrupted, outcome(root)), f"killed at operation {dies_at} of {total}"
    for turn in range(3):
        root = tmp_path / f"again and again {turn}"
        deaths = [draw.randint(10, total // 2) for _ in range(5)]
        die_and_go_on(root, deaths)
        assert not differences(uninterrupted, outcome(root)), f"killed at {deaths}"


@pytest.mark.usefixtures("quick_inbox")
def test_an_op_that_was_applied_and_not_told_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two: TensorBoard, say, would not show what was done to the run."""
    told: list[tuple[int, str]] = []

    class Hears(Callback):
        def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
            told.append((run.step, text))

    plan = {(0, 1): [{"op": "stop", "run": 0}]}
    for root, dies in ((tmp_path / "whole", False), (tmp_path / "killed", True)):
        if dies:
            with monkeypatch.context() as patch, pytest.raises(Killed), locks_die_with_the_process(), Disk():
                patch.setattr(Journal, "append", lambda journal, *entries: (_ for _ in ()).throw(Killed))
                play(root, plan=plan)
        engine = experiment(root, plan)
        engine.fabric._callbacks.append(Hears())
        engine.run()
        engine.close()
    first, second = told
    assert first == second and first[0] == 6


@pytest.mark.usefixtures("quick_inbox")
def test_a_clone_takes_nothing_over_from_a_refused_one_whose_number_it_gets(tmp_path: Path) -> None:
    """Else it is kept under a configuration that it never had, and the experiment cannot be gone on with."""
    refused = {"op": "clone", "run": 0, "overrides": ["breaks=architecture"], "warm_start": True}
    plan = {(0, 0): [refused], (0, 1): [{"op": "clone", "run": 0, "overrides": ["lr=5"], "warm_start": True}]}
    with pytest.raises(EngineError):
        engine = experiment(tmp_path, plan)
        engine.fabric._callbacks.append(Dies(after=7))
        engine.run()
    state = experiment_file.read(ExperimentPaths(tmp_path).state)
    assert state is not None and json.loads(state.runs[3].config)["lr"] == 5
    engine = play(tmp_path, plan=plan)
    assert [run.state for run in engine.experiment.runs] == [RunState.COMPLETED] * 4


@pytest.mark.parametrize("deaths", [[160, 28, 143, 65, 86]])
@pytest.mark.usefixtures("quick_inbox")
def test_killed_where_it_once_ended_otherwise(
    tmp_path: Path, uninterrupted: dict[str, Any], deaths: Sequence[int]
) -> None:
    """An op file whose process died twice between its answer and its move had another name than one left alone."""
    die_and_go_on(tmp_path / "x", deaths)
    assert not differences(uninterrupted, outcome(tmp_path / "x"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_inbox")
def test_killed_at_every_file_operation(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """The soak of the test above: each operation in turn."""
    total = operations(tmp_path / "counted")
    for dies_at in range(1, total):
        root = tmp_path / str(dies_at)
        die_and_go_on(root, [dies_at])
        assert not differences(uninterrupted, outcome(root)), f"killed at operation {dies_at} of {total}"
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_inbox")
def test_killed_and_out_of_room_a_hundred_times(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """Up to eight times each, with checkpoints written beside the training and seldom or often; different each time."""
    total = operations(tmp_path / "counted")
    draw = random.Random(chance.seed(usual=None))
    for turn in range(100):
        root, every = tmp_path / str(turn), draw.choice([1, 1, 2, 3])
        deaths = [draw.randint(1, draw.choice([total, total // 3])) for _ in range(draw.randint(1, 8))]
        deaths = [draw.choice([1, 1, -1]) * number for number in deaths]
        die_and_go_on(root, deaths, overlaps=True, checkpoint=CheckpointSpec(every=every))
        assert not differences(uninterrupted, outcome(root)), f"turn {turn}: {deaths}, a checkpoint every {every}"
        shutil.rmtree(root)
