"""Real trainers in real processes, killed by real signals: what goes on from there ends the same to the last bit."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_END_INFO_TAG
from tensorboard.util.tensor_util import make_ndarray
from transformers import TrainerCallback

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.config.spec import CheckpointSpec, ControlSpec, ExperimentSpec, RunSpec
from rfflow.engine import restoring
from rfflow.engine.callbacks import make_fabric
from rfflow.engine.engine import Engine
from rfflow.engine.interruption import Interrupted
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from tests.engine.test_ops_on_trainers import Composer
from tests.engine.test_restoring import Disk
from tests.engine.test_restoring import Person as ToysPerson
from tests.support import chance
from tests.support.tiny import run_spec
from tests.support.toy import settle_at_once

RATE = "trainer.args.learning_rate=0.003"
TIMINGS = ("runtime", "per_second")

Uninterrupted = tuple[tuple[float, int], dict[str, Any]]


class Person(ToysPerson):
    """Clones the first run warm, stops the second and goes on with it, and stops the clone for good."""

    def __init__(self) -> None:
        super().__init__(
            {
                (0, 0): [
                    {"op": "clone", "run": 0, "overrides": ["trainer.args.learning_rate=0.003"], "warm_start": True}
                ],
                (1, 1): [{"op": "stop", "run": 1}],
                (2, 1): [{"op": "resume", "run": 1}],
                (2, 2): [{"op": "stop", "run": 2}],
            }
        )


class Signals(TrainerCallback):
    """Sends its own process signals, once, in the middle of the first run's second chunk."""

    STEP = 6
    numbers: tuple[signal.Signals, ...] = ()

    def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == self.STEP:
            numbers, Signals.numbers = Signals.numbers, ()
            for number in numbers:
                os.kill(os.getpid(), number)


def play(root: Path, specs: Sequence[RunSpec]) -> None:
    """Begin the experiment, or go on with it."""
    spec = ExperimentSpec(
        name="killed",
        accelerator="cpu",
        control=ControlSpec(idle_timeout=0),
        checkpoint=CheckpointSpec(grace=600),
        loggers={"tensorboard": {"_target_": "rfflow.loggers.tensorboard.TensorBoardLogger"}},
        callbacks={
            "log": {"_target_": "rfflow.tracking.metrics_log.MetricsLog"},
            "table": {"_target_": "rfflow.tracking.runs_csv.RunsTable"},
            "timeline": {"_target_": "rfflow.tracking.timeline.Timeline", "picture": False},
            "person": {"_target_": "tests.stories.test_killing.Person"},
        },
    )
    paths = ExperimentPaths(root)
    state = experiment_file.read(paths.state)
    engine = Engine(spec, paths, make_fabric(spec), composer=Composer())
    if state is None:
        for number, run in enumerate(specs):
            engine.add(run, number)
    else:
        restoring.go_on(engine, state)
        for record in state.runs:
            if record.parent is None:
                run = engine.add(specs[record.number], record.number)
            else:
                parent = engine.experiment.run(record.parent)
                clone, _, _ = Composer().compose_clone(parent, record.overrides, record.number, record.path(root))
                run = engine.add(clone, record.number, record.overrides)
            restoring.take_up(engine, run, record)
    try:
        engine.run()
    finally:
        engine.close()


def in_a_process(
    root: Path,
    specs: Sequence[RunSpec],
    *,
    then: Callable[[multiprocessing.Process], None] = lambda process: None,
    disk: Disk | None = None,
    signals: tuple[signal.Signals, ...] = (),
) -> int:
    """Play in a process of its own; return its exit status, negative for a signal."""
    context = multiprocessing.get_context("fork")  # what took ten seconds to import is there already
    process = context.Process(target=_body, args=(root, specs, disk or contextlib.nullcontext(), signals))
    process.start()
    then(process)  # type: ignore[arg-type]
    process.join(600)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def killed_at(operation: int | None) -> Disk:
    """Return a disk of which one operation, and no other, is always the n-th, and kills the process."""
    return Disk(operation, error=lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[arg-type, return-value]


def _body(root: Path, specs: Sequence[RunSpec], disk: Any, signals: tuple[signal.Signals, ...]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    settle_at_once(pytest.MonkeyPatch())
    Signals.numbers = signals
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    try:
        with disk:
            play(root, specs)
        if isinstance(disk, Disk):
            (root.parent / "operations.txt").write_text(str(disk.count))
    except Interrupted as interrupted:
        os._exit(interrupted.exit_status)
    except BaseException:
        import traceback

        (root.parent / "trace.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def outcome(root: Path) -> dict[str, Any]:
    """Return what an experiment leaves, without clocks and inodes."""
    paths = ExperimentPaths(root)
    state = experiment_file.read(paths.state)
    assert state is not None
    ops = [json.loads(line) for line in paths.ops.read_text().splitlines()]
    found: dict[str, Any] = {
        "states": {run.number: run.state for run in state.runs},
        "ops": [{key: op[key] for key in ("op", "run", "outcome", "detail", "chunk")} for op in ops],
    }
    chunks = json.loads(paths.timeline.read_text())["chunks"]
    found["timeline"] = sorted(
        (chunk["run"], chunk["chunk"], chunk["step"], chunk["evaluation"] is not None) for chunk in chunks
    )
    header, *rows = csv.reader(paths.runs_table.read_text().splitlines())
    hidden = [n for n, name in enumerate(header) if name.endswith((*TIMINGS, "seconds", "checkpoint"))]
    found["table"] = [[cell for n, cell in enumerate(row) if n not in hidden] for row in (header, *rows)]
    for run in state.runs:
        lines = [json.loads(line) for line in paths.run(run.number).metrics.read_text().splitlines()]
        found[f"log {run.number}"] = [
            (line["step"], line["chunk"], {k: v for k, v in line["metrics"].items() if not k.endswith(TIMINGS)})
            for line in lines
        ]
        weights = load_file(paths.run(run.number).weights)
        found[f"weights {run.number}"] = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
        events = EventAccumulator(str(paths.curves(run.number)), tensor_size_guidance={"tensors": 0})
        events.Reload()
        found[f"events {run.number}"] = {
            tag: [(event.step, make_ndarray(event.tensor_proto).tolist()) for event in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]
            if not tag.endswith((*TIMINGS, "session_start_info", "session_end_info"))
        }
        found[f"ended {run.number}"] = SESSION_END_INFO_TAG in events.Tags()["tensors"]
    (shared,) = paths.tensorboard.glob("experiment*")
    events = EventAccumulator(str(shared)).Reload()
    found["columns"] = events.summary_metadata[EXPERIMENT_TAG].plugin_data.content
    return found


def differences(expected: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (expected.get(key), seen.get(key))
        for key in expected.keys() | seen.keys()
        if expected.get(key) != seen.get(key)
    }


@pytest.fixture(scope="module")
def specs(tiny_model: Path, tiny_data: Path) -> list[RunSpec]:
    args = {"num_train_epochs": 2, "logging_steps": 2, "per_device_train_batch_size": 8}
    own = {"lr_scheduler_type": "cosine", "eval_strategy": "epoch", "eval_on_start": True}
    first = run_spec(tiny_model, tiny_data, chunks=3, args={**args, **own}, eval_size=0.1)
    return [
        replace(first, trainer=replace(first.trainer, callbacks=({"_target_": "tests.stories.test_killing.Signals"},))),
        run_spec(tiny_model, tiny_data, chunks=4, args={**args, "gradient_accumulation_steps": 2, "logging_steps": 5}),
    ]


@pytest.fixture(scope="module")
def uninterrupted(specs: list[RunSpec], tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The seconds and file operations that it takes, and what it leaves."""
    root = tmp_path_factory.mktemp("uninterrupted") / "experiment"
    started = time.monotonic()
    assert in_a_process(root, specs, disk=killed_at(None)) == 0, (root.parent / "trace.txt").read_text()
    operations = int((root.parent / "operations.txt").read_text())
    return (time.monotonic() - started, operations), outcome(root)


def kill_and_go_on(root: Path, specs: list[RunSpec], seconds: float, draw: random.Random, kills: int) -> list[float]:
    moments = []
    for _ in range(kills):
        moments.append(round(draw.uniform(0.05, 1) * seconds, 3))

        def kill(process: multiprocessing.Process, after: float = moments[-1]) -> None:
            process.join(after)  # it may have ended by then
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)

        in_a_process(root, specs, then=kill)
    status = in_a_process(root, specs)
    assert status == 0, (root.parent / "trace.txt").read_text()
    return moments


def test_the_plan_comes_to_pass(uninterrupted: Uninterrupted) -> None:
    _, left = uninterrupted
    assert left["states"] == {0: RunState.COMPLETED, 1: RunState.COMPLETED, 2: RunState.STOPPED}
    assert [op["op"] for op in left["ops"]] == ["clone", "stop", "resume", "stop"]


def test_killed_again_and_again_it_ends_the_same(
    specs: list[RunSpec], uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """SIGKILL at two file operations: weights, logs, curves, timeline and op journal are those of one process."""
    (_, total), expected = uninterrupted
    draw, root = random.Random(chance.seed()), tmp_path / "experiment"
    deaths = [draw.randint(total // 4, total // 2) for _ in range(2)]
    for number in deaths:
        assert in_a_process(root, specs, disk=killed_at(number)) == -signal.SIGKILL
    assert in_a_process(root, specs) == 0, (root.parent / "trace.txt").read_text()
    assert not differences(expected, outcome(root)), f"killed at {deaths} of {total}"


@pytest.mark.slow
def test_a_long_soak(specs: list[RunSpec], uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """Killed at any moment, not only where files are touched; others each time."""
    (seconds, _), expected = uninterrupted
    draw = random.Random(chance.seed(usual=None))
    for turn in range(15):
        root = tmp_path / str(turn) / "experiment"
        root.parent.mkdir()
        moments = kill_and_go_on(root, specs, seconds, draw, kills=draw.randint(1, 6))
        assert not differences(expected, outcome(root)), f"killed after {moments} s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves_and_leaves(
    specs: list[RunSpec], uninterrupted: Uninterrupted, tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of a chunk: it leaves with a checkpoint of that very step, and goes on to the same end.

    Lines that are cut from its log meanwhile are put back, those of rfflow's own evaluations too.
    """
    _, expected = uninterrupted
    root = tmp_path / "experiment"
    assert in_a_process(root, specs, signals=(number,)) == 128 + number
    newest = Checkpoints(ExperimentPaths(root).run(0).checkpoints).newest()
    assert newest is not None and newest.step == Signals.STEP
    metrics = ExperimentPaths(root).run(0).metrics
    lines = metrics.read_text().splitlines()
    metrics.write_text("".join(f"{line}\n" for line in lines[:1] + lines[4:]))
    status = in_a_process(root, specs)
    assert '"restored": true' in metrics.read_text()
    assert status == 0, (root.parent / "trace.txt").read_text()
    assert not differences(expected, outcome(root))


def test_a_second_signal_leaves_at_once(specs: list[RunSpec], tmp_path: Path) -> None:
    """Nothing more is written after it, and what was saved before can be gone on with."""
    root = tmp_path / "experiment"
    assert in_a_process(root, specs, signals=(signal.SIGINT, signal.SIGTERM)) == 143
    assert experiment_file.read(ExperimentPaths(root).state) is not None
    newest = Checkpoints(ExperimentPaths(root).run(0).checkpoints).newest()
    assert newest is not None and newest.step < Signals.STEP
