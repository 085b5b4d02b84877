"""What a worker makes of what happens on its device, with a trainer that only does as it is told."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.config.spec import ExperimentSpec
from rfflow.runs.chunks import ChunkPlan
from rfflow.runs.events import Again, Boundary, Event, GiveUp, Prepare, Ready, Train
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import RunCard
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.worker import Worker
from tests.support.toy import ToyContext, toy_spec


class Short:
    """Has not memory enough the first time."""

    built: list[tuple[int, bool]]

    def __init__(self, card: RunCard, shared: Any, **_: Any):
        self.context = ToyContext()
        self.holdings = RunTensors(shared.fabric, list, card.paths.root / ".suspended.safetensors")

    def prepare(self, start: Any, *, checkpoint: Path | None, step: int, is_at_boundary: bool) -> Ready:
        Short.built.append((step, is_at_boundary))
        return Ready(ChunkPlan((6, 12), 2))

    def advance(self) -> Event:
        if len(Short.built) == 1:
            raise MemoryError
        return Boundary(12, (), {})

    def keep_weights(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("step", "is_at_boundary"), [(6, True), (8, False), (3, False)])
def test_only_the_last_boundary_has_weights_for_clones(tmp_path: Path, step: int, is_at_boundary: bool) -> None:
    """What is tried again may go on from the middle of a chunk, which is not where a clone may start."""
    Short.built = []
    card = RunCard(0, toy_spec(), "Run 0", RunPaths(tmp_path))
    checkpoints = Checkpoints(card.paths.checkpoints)
    checkpoints.seal(checkpoints.begin(step), {"chunks": []})
    spec = ExperimentSpec(name="short", accelerator="cpu")
    worker = Worker(spec, Fabric(accelerator="cpu", devices=1), lambda run, event: None, make_session=Short)  # type: ignore[arg-type]
    worker.do(Prepare(card))
    worker.do(Train(0, done=6, is_saved=False))
    assert worker.advance() == (0, Again(step))
    (_, built), (_, reached) = worker.advance() or (0, None), worker.advance() or (0, None)
    assert isinstance(built, Ready) and isinstance(reached, Boundary), "what is there of it now is told first"
    assert Short.built == [(0, False), (step, is_at_boundary)]
    worker.close()


class Tied(Short):
    """Holds itself, as trainers do."""

    def __init__(self, card: RunCard, shared: Any, **_: Any):
        super().__init__(card, shared)
        self.itself = self


def test_what_a_run_held_is_collected_once_it_is_given_up(tmp_path: Path) -> None:
    """What stands is spared from collections, and what was let go of is not."""
    Short.built = []
    spec = ExperimentSpec(name="tied", accelerator="cpu")
    worker = Worker(spec, Fabric(accelerator="cpu", devices=1), lambda run, event: None, make_session=Tied)  # type: ignore[arg-type]
    cards = [RunCard(number, toy_spec(), f"Run {number}", RunPaths(tmp_path / str(number))) for number in (0, 1)]
    for card in cards:
        worker.do(Prepare(card))
    held = [weakref.ref(worker.sessions[number]) for number in (0, 1)]
    walked = {id(it) for it in gc.get_objects()}
    assert not [one for one in held if id(one()) in walked], "what stands is walked again and again"
    worker.do(GiveUp(0))
    gc.collect()
    assert [one() is None for one in held] == [True, False]
    worker.do(Prepare(cards[0]))
    worker.close()
    gc.collect()
    assert held[1]() is None
