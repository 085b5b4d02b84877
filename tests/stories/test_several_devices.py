"""Real trainers on two processes, ended by a signal in the middle: what goes on from there ends the same to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rfflow.checkpointing import experiment_file
from rfflow.config.spec import CheckpointSpec, ExperimentSpec, RunSpec
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.engine.interruption import Interrupted
from rfflow.runs.experiment import Callback
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.processes import ProcessSlots
from tests.slots.test_exactness import left_by
from tests.support.tiny import run_spec


class Ends(Callback):
    """Sends its own process a signal at the end of a chunk."""

    def __init__(self, number: signal.Signals, chunk: int = 4):
        self._number = number
        self._left = chunk

    def on_chunk_end(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def play(root: Path, specs: Sequence[RunSpec], devices: int, *callbacks: Callback) -> list[Run]:
    """Begin the experiment, or go on with it, on so many devices."""
    log = {"_target_": "rfflow.tracking.metrics_log.MetricsLog"}
    spec = ExperimentSpec(
        name="several", accelerator="cpu", checkpoint=CheckpointSpec(grace=600), callbacks={"log": log}
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    slots = ProcessSlots(spec, [threads] * devices) if devices > 1 else None
    engine = Engine(spec, ExperimentPaths(root), slots=slots)
    for callback in callbacks:
        engine.fabric._callbacks.append(callback)
    state = experiment_file.read(ExperimentPaths(root).state)
    if state is not None:
        restoring.go_on(engine, state)
    for number, each in enumerate(specs):
        run = engine.add(each, number)
        record = None if state is None else state.run(number)
        if record is not None:
            restoring.take_up(engine, run, record)
    try:
        engine.run()
    finally:
        engine.close()
    return engine.experiment.runs


def _end(root: Path, specs: Sequence[RunSpec], number: signal.Signals) -> None:
    try:
        play(root, specs, 2, Ends(number))
    except Interrupted:
        os._exit(0)
    os._exit(1)


@pytest.mark.parametrize(
    ("number", "devices"),
    [
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_ended_on_two_devices_goes_on(
    number: signal.Signals, devices: int, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    specs = [
        run_spec(tiny_model, tiny_data, chunks=3),
        run_spec(tiny_model, tiny_data, chunks=3, args={"learning_rate": 3e-3}),
        run_spec(tiny_model, tiny_data, chunks=3, peft=None),
    ]
    expected = [left_by(run) for run in play(tmp_path / "whole", specs, 1)]
    root = tmp_path / "ended"
    # What took ten seconds to import is there already.
    process = multiprocessing.get_context("fork").Process(target=_end, args=(root, specs, number))
    process.start()
    process.join(600)
    assert process.exitcode == (-signal.SIGKILL if number is signal.SIGKILL else 0)
    state = experiment_file.read(ExperimentPaths(root).state)
    assert state is not None and not state.is_finished
    runs = play(root, specs, devices)
    assert [run.state for run in runs] == [RunState.COMPLETED] * 3
    assert [left_by(run) for run in runs] == expected
