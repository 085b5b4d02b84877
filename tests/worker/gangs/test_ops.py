"""Stops, resumes, clones, deletes, signals and kills in gangs: whoever ends, ends with the bits of the run alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.checkpointing.experiment_file import read
from rfflow.config.spec import CheckpointSpec, ControlSpec, ExperimentSpec, RunSpec
from rfflow.control.asking import drop
from rfflow.control.journal import Journal
from rfflow.engine import restoring
from rfflow.engine.callbacks import make_fabric
from rfflow.engine.engine import Engine
from rfflow.engine.interruption import Interrupted
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.processes import ProcessSlots
from tests.engine.test_ops_on_trainers import Composer, Person
from tests.support.plain import train_alone
from tests.support.tiny import make_data, run_spec
from tests.support.toy import settle_at_once
from tests.support.two_workers import TwoWorkers

CHUNKS = 4
"""Of two steps each."""
RATE = "trainer.args.learning_rate=0.004"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of ops are whole when they are there."""
    settle_at_once(monkeypatch)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight batches."""
    return make_data(tmp_path_factory.mktemp("few") / "sums.jsonl", rows=16)


@pytest.fixture
def specs(tiny_model: Path, rows: Path) -> list[RunSpec]:
    """Three runs that go together."""
    return [draw(random.Random(number), tiny_model, rows) for number in range(3)]


def draw(chance: random.Random, model: Path, rows: Path) -> RunSpec:
    """Draw a run of eight steps."""
    peft = {"r": chance.choice([2, 4, 7]), "lora_dropout": chance.choice([0.1, 0.3])}
    args = {
        "per_device_train_batch_size": 2,
        "max_length": 40,
        "learning_rate": chance.choice([1e-3, 1e-2]),
        "seed": chance.randrange(100),
        "logging_steps": 3,
    }
    return run_spec(model, rows, args=args, peft=peft, chunks=CHUNKS, evaluate=False)


def play(
    root: Path, specs: Sequence[RunSpec], watches: Sequence[Callback] = (), *, fusion: Any = "slice", slots: Any = None
) -> Experiment:
    """Begin an experiment, or go on with it, to its end."""
    spec = ExperimentSpec(
        name="gangs",
        accelerator="cpu",
        fusion=fusion,
        control=ControlSpec(idle_timeout=0),
        checkpoint=CheckpointSpec(grace=600),
    )
    paths, fabric = ExperimentPaths(root), make_fabric(spec)
    fabric._callbacks.extend(watches)
    state = read(paths.state)
    engine = Engine(spec, paths, fabric, Composer(), slots=None if slots is None else slots(spec))
    if state is None:
        for number, run in enumerate(specs):
            engine.add(run, number)
    else:
        restoring.go_on(engine, state)
        for record in state.runs:
            if record.parent is None:
                run = engine.add(specs[record.number], record.number)
            else:
                clone = made_from(engine.experiment.run(record.parent).spec, record.overrides)
                run = engine.add(clone, record.number, record.overrides)
            restoring.take_up(engine, run, record)
    try:
        engine.run()
    finally:
        engine.close()
    return engine.experiment


def made_from(spec: RunSpec, overrides: Sequence[str]) -> RunSpec:
    """Return the configuration of a clone."""
    parent = Run(0, spec, (), RunPaths(Path()))
    made, _, _ = Composer().compose_clone(parent, tuple(overrides), 1, Path())
    return made


def check(experiment: Experiment, specs: Sequence[RunSpec], root: Path) -> None:
    """Check that every run which ended did so as it would have alone."""
    for run in experiment.runs:
        if run.state is not RunState.COMPLETED:
            assert run.state in (RunState.STOPPED, RunState.DELETED), run.error
            continue
        weights = trained_alone(experiment, run, specs, root / f"alone-{run.number}")
        seen = saved(run)
        assert seen.keys() == weights.keys()
        assert all(torch.equal(seen[name], weights[name]) for name in weights), f"run {run.number}"


def trained_alone(experiment: Experiment, run: Run, specs: Sequence[RunSpec], root: Path) -> Mapping[str, torch.Tensor]:
    """Train what a run has trained by TRL alone; a clone that started warm, in an experiment without gangs."""
    if run.parent is None:
        return train_alone(without_callbacks(specs[run.number]), root).weights
    parent = without_callbacks(specs[run.parent])
    if not run.paths.start.exists():
        return train_alone(made_from(parent, run.overrides), root).weights
    (entry,) = (one for one in Journal(experiment.paths.ops).read() if one.clone == run.number)
    assert entry.chunk
    op = {"op": "clone", "run": 0, "overrides": list(run.overrides), "warm_start": True}
    watch = Person(root / "control", {(0, entry.chunk - 1): op})
    return saved(play(root, [parent], [watch], fusion="off").run(1))


def saved(run: Run) -> dict[str, torch.Tensor]:
    """Return the weights at its last boundary."""
    return {name.removeprefix("weights/"): tensor for name, tensor in load_file(run.paths.weights).items()}


def without_callbacks(spec: RunSpec) -> RunSpec:
    """Return a run that nothing disturbs."""
    return replace(spec, trainer=replace(spec.trainer, callbacks=()))


def with_callback(spec: RunSpec, name: str, step: int) -> RunSpec:
    """Return a run that meets with something at a step."""
    callback = {"_target_": f"{__name__}.{name}", "step": step}
    return replace(spec, trainer=replace(spec.trainer, callbacks=(callback,)))


class SignalAt(TrainerCallback):
    """Sends its process a signal in the middle of a chunk, once in an experiment."""

    number = signal.SIGINT

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: object, **_: object) -> None:
        there = Path(args.output_dir).parent.parent / "signalled"
        if state.global_step == self.step and not there.exists():
            there.touch()
            os.kill(os.getpid(), self.number)


class KillAt(SignalAt):
    """Nothing is saved any more."""

    number = signal.SIGKILL


OPS: dict[tuple[int, int], Any] = {
    (0, 0): {"op": "stop", "run": 0},
    (1, 1): {"op": "clone", "run": 1, "overrides": [RATE], "warm_start": True},
    (1, 2): [{"op": "resume", "run": 0}, {"op": "clone", "run": 0, "overrides": ["peft.r=8"]}],
    (2, 2): {"op": "delete", "run": 2},
}


def test_ops_on_members_change_nothing_of_who_goes_on(
    specs: list[RunSpec], tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    """A member is stopped and comes back, is cloned warm and cold, and is deleted."""
    person = Person(tmp_path / "control", OPS)
    experiment = play(tmp_path, specs, [person])
    assert not person.when
    states = [run.state for run in experiment.runs]
    assert states == [RunState.COMPLETED] * 2 + [RunState.DELETED] + [RunState.COMPLETED] * 2
    assert {(0, 1, 2), (1, 2)} <= set(passes)
    assert any(0 in one and len(one) > 1 for one in passes[10:]), "the one that was stopped goes on alone"
    for clone in (3, 4):
        assert any(clone in one and len(one) > 1 for one in passes), f"clone {clone} goes alone"
    check(experiment, specs, tmp_path / "alone")


def test_ops_come_to_the_same_on_two_slots(
    specs: list[RunSpec], tmp_path: Path, passes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gangs are formed of who is there, and runs move."""
    monkeypatch.setattr("rfflow.scheduling.scheduler._SLACK", -1)  # nobody is at home anywhere
    person = Person(tmp_path / "control", OPS)
    chance = random.Random(1)
    experiment = play(tmp_path, [*specs, specs[0]], [person], slots=lambda spec: TwoWorkers(spec, chance))
    assert {chunk.slot for run in experiment.runs for chunk in run.chunks} == {0, 1}
    assert sum(len(one) > 1 for one in passes) > 4
    check(experiment, [*specs, specs[0]], tmp_path / "alone")


@pytest.mark.slow
def test_ops_come_to_the_same_in_two_processes(specs: list[RunSpec], tmp_path: Path) -> None:
    """What the one above does in this process; slow for the imports of the two."""
    person = Person(tmp_path / "control", OPS)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    four = [*specs, specs[0]]
    experiment = play(tmp_path, four, [person], slots=lambda spec: ProcessSlots(spec, [threads] * 2))
    chunks = [chunk for run in experiment.runs for chunk in run.chunks]
    assert {chunk.slot for chunk in chunks} == {0, 1}
    at_once = [
        (one.run, other.run)
        for one in chunks
        for other in chunks
        if one.run < other.run and one.slot == other.slot and one.started < other.ended and other.started < one.ended
    ]
    assert at_once, "no two runs were in a gang"
    check(experiment, four, tmp_path / "alone")


def test_killed_in_the_middle_of_a_gang_all_go_on_from_their_checkpoints(
    specs: list[RunSpec], tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    """The other members are in the same step, and nothing of it is saved."""
    specs[1] = with_callback(specs[1], "KillAt", 5)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=play, args=(tmp_path, specs))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for number in range(3):
        newest = Checkpoints(ExperimentPaths(tmp_path).run(number).checkpoints).newest()
        assert newest is not None and newest.step == 4
    experiment = play(tmp_path, specs)
    assert (0, 1, 2) in passes
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED] * 3
    check(experiment, specs, tmp_path / "alone")


class Chance(Callback):
    """Drops op files at chance boundaries; what is refused is."""

    def __init__(self, control: Path, draw: random.Random, files: int):
        self._control, self._draw, self._left = control, draw, files

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        while self._left and self._draw.random() < 0.4:
            self._left -= 1
            verb = self._draw.choice(("stop", "resume", "clone", "clone", "delete"))
            op: dict[str, Any] = {"op": verb, "run": self._draw.choice((run.number, self._draw.randrange(3)))}
            if verb == "clone":
                op |= {"run": op["run"] % 3, "warm_start": self._draw.random() < 0.6}
                op["overrides"] = [RATE if op["warm_start"] else self._draw.choice((RATE, "peft.r=8"))]
            drop(self._control, op)

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        """All that is left is stopped."""
        if self._left:
            self._left -= 1
            drop(self._control, {"op": "resume", "run": "all"})


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20))])
def test_whatever_is_asked_of_members_whoever_ends_ends_as_alone(
    tiny_model: Path, rows: Path, tmp_path: Path, seed: int, slots: int, passes: list[tuple[int, ...]]
) -> None:
    """Ops and a signal at random; those behind the first seed are slow for their number alone."""
    draws = random.Random(seed)
    specs = [draw(draws, tiny_model, rows) for _ in range(3)]
    left = draws.randrange(3)
    specs[left] = with_callback(specs[left], "SignalAt", draws.choice((1, 3, 5, 7)))
    watches = [Chance(tmp_path / "control", draws, 4)]

    def go_on() -> Experiment:
        return play(tmp_path, specs, watches, slots=None if slots == 1 else lambda spec: TwoWorkers(spec, draws))

    try:
        experiment = go_on()
    except Interrupted:
        experiment = go_on()
    assert any(len(one) > 1 for one in passes)
    check(experiment, specs, tmp_path / "alone")
