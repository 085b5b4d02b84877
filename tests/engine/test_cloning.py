"""Clones that are made in the middle of a chunk, because their op was there by then: nobody can tell the difference."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.config.spec import RunSpec
from rfflow.control.asking import drop
from rfflow.engine.building import Builds
from rfflow.errors import EngineError
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.run import Run, RunState
from rfflow.worker.training.coroutine import TrainerCoroutine
from tests.engine.test_ops_on_trainers import play, refusal
from tests.support.tiny import run_spec

BEFORE_STEP = {"op": "clone", "run": 0, "overrides": ["peft.lora_dropout=0.0,0.2"], "warm_start": True}


@pytest.fixture(autouse=True)
def _pausing_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pausing = functools.partial(TrainerCoroutine, progress_every=0)
    monkeypatch.setattr("rfflow.worker.training.session.TrainerCoroutine", pausing)


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> Callable[..., RunSpec]:
    """Make a run on the tiny model: 24 steps in 4 chunks of 6."""
    return lambda **kwargs: run_spec(tiny_model, tiny_data, **kwargs)


class Watcher(Callback):
    """Acts when run 0 has logged a step, in the middle of its chunk; sees which clones are there before it ends."""

    def __init__(self, acts: Mapping[int, Callable[[Experiment], Any]]):
        self.acts = dict(acts)
        self.there: list[set[str]] = []

    def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
        if run.number == 0 and step in self.acts:
            self.acts.pop(step)(experiment)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        if run.number == 0:
            self.there.append({path.name for path in (experiment.paths.root / "runs").iterdir()} - {"0"})


def asking(**changes: Any) -> Callable[[Experiment], Path]:
    """Return what drops a clone op."""
    return lambda experiment: drop(experiment.paths.control, {**BEFORE_STEP, **changes})


def test_a_clone_made_in_the_middle_of_a_chunk_is_the_one_made_at_its_end(
    spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """Bit for bit, started warm from the run that was training meanwhile; and that run has noticed nothing."""
    early = Watcher({8: asking()})
    one, made_early = play(tmp_path / "early", [spec()], {}, watch=[early])
    other, made_late = play(tmp_path / "late", [spec()], {(0, 1): BEFORE_STEP})
    assert early.there[:2] == [set(), {"1", "2"}], "they were not made before the chunk ended"
    assert [run.first_chunk for run in one.runs] == [run.first_chunk for run in other.runs] == [0, 2, 2]
    assert [run.state for run in one.runs] == [RunState.COMPLETED] * 3
    for name in ("0", "1", "2"):
        assert not made_early[name].differences(made_late[name])
    answered = [(root / "ops.jsonl").read_text().count("applied") for root in (one.paths.root, other.paths.root)]
    assert answered == [2, 2]


def test_an_op_that_is_withdrawn_or_changed_before_the_boundary_leaves_nothing(
    spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """What counts is the file as it is when the chunk has ended."""

    def withdraw(experiment: Experiment) -> None:
        (file,) = (path for path in experiment.paths.control.glob("*.yaml") if path.name != "status.yaml")
        assert (experiment.paths.root / "runs" / "1").exists(), "it was not made before the chunk ended"
        file.unlink()

    def change(experiment: Experiment) -> None:
        withdraw(experiment)
        asking(overrides=["peft.r=2"], warm_start=False)(experiment)

    watcher = Watcher({8: asking(), 10: withdraw, 14: asking(), 16: change})
    experiment, ended = play(tmp_path, [spec()], {}, watch=[watcher])
    assert [run.overrides for run in experiment.runs] == [(), ("peft.r=2",)]
    assert ended["1"].weights and {path.name for path in (tmp_path / "runs").iterdir()} == {"0", "1"}
    assert {tensor.shape[0] for name, tensor in ended["1"].weights.items() if "lora_A" in name} == {2}


def test_what_cannot_be_cloned_is_refused_at_the_boundary_as_ever(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    watcher = Watcher({8: asking(overrides=["trainer.args.learning_rat=1"])})
    experiment, _ = play(tmp_path, [spec()], {}, watch=[watcher])
    assert len(experiment.runs) == 1 and "learning_rat" in refusal(tmp_path) and watcher.there == [set()] * 4
    assert (tmp_path / "ops.jsonl").read_text().count("refused") == 1


def test_a_clone_that_needs_more_than_an_adapter_waits_for_the_device(
    spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """A full fine-tune would bring a whole model beside the run that is training."""
    watcher = Watcher({8: asking(overrides=["trainer.args.learning_rate=0.0001"], warm_start=False)})
    experiment, _ = play(tmp_path, [spec(peft=None)], {}, watch=[watcher])
    assert watcher.there[1] == set() and [run.state for run in experiment.runs] == [RunState.COMPLETED] * 2


def test_what_is_heard_while_a_clone_is_made_early_is_not_the_clones(
    spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that finds no room ends the experiment; taken for a clone that cannot be made, it would hang it."""
    waits = threading.Event()
    seal, wait = Checkpoints.seal, Builds.wait_for_weights

    def no_room(checkpoints: Checkpoints, *args: Any) -> Path:
        if checkpoints.folder.parent.name != "1":
            return seal(checkpoints, *args)
        assert waits.wait(30)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, "seal", no_room)
    monkeypatch.setattr(Builds, "wait_for_weights", lambda *args: (waits.set(), wait(*args))[1])
    with pytest.raises(EngineError, match="checkpoint of run 1"):
        play(tmp_path, [spec(), spec()], {}, watch=[Watcher({8: asking(run=1)})])
