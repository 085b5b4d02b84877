"""Stops, resumes, warm clones and deletes come to the same on several devices as on one, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rfflow.config.spec import ControlSpec, ExperimentSpec, RunSpec
from rfflow.engine.callbacks import make_fabric
from rfflow.engine.engine import Engine
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from rfflow.slots.processes import ProcessSlots
from tests.engine.test_ops_on_trainers import Composer, Person
from tests.slots.test_exactness import differences, left_by
from tests.support.tiny import run_spec
from tests.worker.training.test_snapshot_alignment import dpo_spec, evaluation_pairs, pairs

__all__ = ["dpo_spec", "evaluation_pairs", "pairs"]

WHEN = {
    (0, 0): {"op": "stop", "run": 0},
    (1, 1): {
        "op": "clone",
        "run": 1,
        "overrides": ["trainer.args.learning_rate=0.001", "trainer.args.beta=0.3"],
        "warm_start": True,
    },
    (1, 2): [{"op": "resume", "run": 0}, {"op": "clone", "run": 0, "overrides": ["peft.r=8"]}],
    (2, 0): {"op": "delete", "run": 2},
}


def play(root: Path, specs: list[RunSpec], devices: int) -> Experiment:
    """Train on so many devices, with somebody who watches and acts."""
    log = {"log": {"_target_": "rfflow.tracking.metrics_log.MetricsLog"}}
    spec = ExperimentSpec(name="ops", accelerator="cpu", control=ControlSpec(idle_timeout=0), callbacks=log)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    slots = ProcessSlots(spec, [threads] * devices) if devices > 1 else None
    paths = ExperimentPaths(root)
    person = Person(paths.control, WHEN)
    fabric = make_fabric(spec)
    fabric._callbacks.append(person)
    engine = Engine(spec, paths, fabric, Composer(), slots=slots)
    for number, each in enumerate(specs):
        engine.add(each, number)
    engine.run()
    engine.close()
    assert not person.when, f"never came to pass: {person.when}"
    return engine.experiment


def test_ops_come_to_the_same_on_two_devices(
    tiny_model: Path,
    tiny_data: Path,
    dpo_spec: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a move at most boundaries, of the parent and of its clones too."""
    monkeypatch.setattr("rfflow.scheduling.scheduler._SLACK", -1)  # nobody is at home anywhere
    specs = [
        run_spec(tiny_model, tiny_data, chunks=4),
        dpo_spec(chunks=4),
        run_spec(tiny_model, tiny_data, chunks=4, peft=None, args={"max_steps": 12}),
    ]
    one, two = play(tmp_path / "one", specs, 1), play(tmp_path / "two", specs, 2)
    states = [RunState.COMPLETED, RunState.COMPLETED, RunState.DELETED, RunState.COMPLETED, RunState.COMPLETED]
    for experiment in (one, two):
        assert [run.state for run in experiment.runs] == states, [run.error for run in experiment.runs]
    assert {chunk.slot for run in two.runs for chunk in run.chunks} == {0, 1}
    for alone, moved in zip(one.runs, two.runs, strict=True):
        assert (alone.parent, alone.overrides, alone.first_chunk) == (moved.parent, moved.overrides, moved.first_chunk)
        if alone.state is RunState.COMPLETED:
            assert not differences(left_by(moved), left_by(alone)), f"run {moved.number}"
        else:
            assert [chunk.step for chunk in alone.chunks] == [chunk.step for chunk in moved.chunks]
