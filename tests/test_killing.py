"""Real trainers in real processes, killed by real signals: what goes on from there ends the same to the last bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rfflow import resuming, saved
from rfflow.engine import Engine, make_fabric
from rfflow.interruption import Interrupted
from rfflow.runs import ExperimentPaths, RunState
from rfflow.spec import CheckpointSpec, ControlSpec, ExperimentSpec, RunSpec
from tests.test_ops_on_trainers import Composer
from tests.test_resuming import Person as ToysPerson
from tests.tiny import run_spec
from tests.toy import settle_at_once

RATE = "trainer.args.learning_rate=0.003"
TIMINGS = ("runtime", "per_second")


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


def play(root: Path, specs: Sequence[RunSpec]) -> None:
    """Begin the experiment, or go on with it."""
    spec = ExperimentSpec(
        name="killed",
        accelerator="cpu",
        control=ControlSpec(idle_timeout=0),
        checkpoint=CheckpointSpec(grace=20),
        loggers={"tensorboard": {"_target_": "rfflow.tracking.tensorboard.TensorBoardLogger"}},
        callbacks={
            "log": {"_target_": "rfflow.tracking.metrics_log.MetricsLog"},
            "table": {"_target_": "rfflow.tracking.runs_csv.RunsTable"},
            "timeline": {"_target_": "rfflow.tracking.timeline.Timeline", "picture": False},
            "person": {"_target_": "tests.test_killing.Person"},
        },
    )
    paths = ExperimentPaths(root)
    state = saved.read(paths.state)
    engine = Engine(spec, paths, make_fabric(spec), composer=Composer())
    if state is None:
        for number, run in enumerate(specs):
            engine.add(run, number)
    else:
        resuming.go_on(engine, state)
        for record in state.runs:
            if record.parent is None:
                run = engine.add(specs[record.number], record.number)
            else:
                parent = engine.experiment.run(record.parent)
                clone, _, _ = Composer().compose_clone(parent, record.overrides, record.number)
                run = engine.add(clone, record.number, record.overrides)
            resuming.take_up(engine, run, record)
    try:
        engine.run()
    finally:
        engine.close()


def in_a_process(*args: Any, then: Callable[[multiprocessing.Process], None] = lambda process: None) -> int:
    """Play in a process of its own; return its exit status, negative for a signal."""
    context = multiprocessing.get_context("fork")  # what took ten seconds to import is there already
    process = context.Process(target=_body, args=args)
    process.start()
    then(process)  # type: ignore[arg-type]
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _body(*args: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    settle_at_once(pytest.MonkeyPatch())
    try:
        play(*args)
    except Interrupted as interrupted:
        os._exit(interrupted.exit_status)
    except BaseException:
        import traceback

        (Path(args[0]).parent / "trace.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def outcome(root: Path) -> dict[str, Any]:
    """Return what an experiment leaves, without clocks and inodes."""
    paths = ExperimentPaths(root)
    state = saved.read(paths.state)
    assert state is not None
    ops = [json.loads(line) for line in paths.ops.read_text().splitlines()]
    found: dict[str, Any] = {
        "states": {run.number: run.state for run in state.runs},
        "ops": [{key: op[key] for key in ("op", "run", "outcome", "detail", "chunk")} for op in ops],
    }
    chunks = json.loads(paths.timeline.read_text())["chunks"]
    found["timeline"] = sorted((chunk["run"], chunk["chunk"], chunk["step"]) for chunk in chunks)
    for run in state.runs:
        lines = [json.loads(line) for line in paths.run(run.number).metrics.read_text().splitlines()]
        found[f"log {run.number}"] = [
            (line["step"], line["chunk"], {k: v for k, v in line["metrics"].items() if not k.endswith(TIMINGS)})
            for line in lines
        ]
        weights = load_file(paths.run(run.number).weights)
        found[f"weights {run.number}"] = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
        events = EventAccumulator(str(paths.tensorboard / str(run.number)))
        events.Reload()
        found[f"curves {run.number}"] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
            if not tag.endswith(TIMINGS)
        }
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
    return [
        run_spec(tiny_model, tiny_data, chunks=3, args={**args, "lr_scheduler_type": "cosine"}),
        run_spec(tiny_model, tiny_data, chunks=4, args={**args, "gradient_accumulation_steps": 2, "logging_steps": 5}),
    ]


@pytest.fixture(scope="module")
def uninterrupted(specs: list[RunSpec], tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, Any]]:
    """The seconds it takes, and what it leaves."""
    root = tmp_path_factory.mktemp("uninterrupted") / "experiment"
    started = time.monotonic()
    assert in_a_process(root, specs) == 0, (root.parent / "trace.txt").read_text()
    return time.monotonic() - started, outcome(root)


def kill_and_go_on(root: Path, specs: list[RunSpec], seconds: float, chance: random.Random, kills: int) -> list[float]:
    moments = []
    for _ in range(kills):
        moments.append(round(chance.uniform(0.05, 1) * seconds, 3))

        def kill(process: multiprocessing.Process, after: float = moments[-1]) -> None:
            process.join(after)  # it may have ended by then
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)

        in_a_process(root, specs, then=kill)
    status = in_a_process(root, specs)
    assert status == 0, (root.parent / "trace.txt").read_text()
    return moments


def _seed() -> random.Random:
    seed = int(os.environ.get("RFFLOW_TEST_SEED", time.time_ns() % 10**6))
    print(f"RFFLOW_TEST_SEED={seed}")
    return random.Random(seed)


def test_the_plan_comes_to_pass(uninterrupted: tuple[float, dict[str, Any]]) -> None:
    _, left = uninterrupted
    assert left["states"] == {0: RunState.COMPLETED, 1: RunState.COMPLETED, 2: RunState.STOPPED}
    assert [op["op"] for op in left["ops"]] == ["clone", "stop", "resume", "stop"]


def test_killed_again_and_again_it_ends_the_same(
    specs: list[RunSpec], uninterrupted: tuple[float, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL at two random moments: weights, logs, curves, timeline and op journal are those of one process."""
    seconds, expected = uninterrupted
    moments = kill_and_go_on(tmp_path / "experiment", specs, seconds, _seed(), kills=2)
    assert not differences(expected, outcome(tmp_path / "experiment")), f"killed after {moments} s"


@pytest.mark.slow
def test_a_long_soak(specs: list[RunSpec], uninterrupted: tuple[float, dict[str, Any]], tmp_path: Path) -> None:
    seconds, expected = uninterrupted
    chance = _seed()
    for turn in range(15):
        root = tmp_path / str(turn) / "experiment"
        root.parent.mkdir()
        moments = kill_and_go_on(root, specs, seconds, chance, kills=chance.randint(1, 6))
        assert not differences(expected, outcome(root)), f"killed after {moments} s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves_and_leaves(
    specs: list[RunSpec], uninterrupted: tuple[float, dict[str, Any]], tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of a chunk: it leaves with a checkpoint of that very step, and goes on to the same end."""
    _, expected = uninterrupted
    root = tmp_path / "experiment"
    log = ExperimentPaths(root).run(0).metrics

    def interrupt(process: multiprocessing.Process) -> None:
        while process.is_alive() and not (log.exists() and log.read_text().count("\n")):
            process.join(0.01)
        os.kill(process.pid or 0, number)

    assert in_a_process(root, specs, then=interrupt) == 128 + number
    status = in_a_process(root, specs)
    assert status == 0, (root.parent / "trace.txt").read_text()
    assert not differences(expected, outcome(root))


def test_a_second_signal_leaves_at_once(specs: list[RunSpec], tmp_path: Path) -> None:
    """Nothing more is written after it, and what was saved before can be gone on with."""
    root = tmp_path / "experiment"
    log = ExperimentPaths(root).run(0).metrics

    def interrupt(process: multiprocessing.Process) -> None:
        while process.is_alive() and not (log.exists() and log.read_text().count("\n")):
            process.join(0.01)
        os.kill(process.pid or 0, signal.SIGINT)
        os.kill(process.pid or 0, signal.SIGTERM)

    assert in_a_process(root, specs, then=interrupt) in (130, 143)
    assert saved.read(ExperimentPaths(root).state) is not None
