"""What a worker asks of anything that advances by a chunk: a trainer's coroutine, or an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rfflow.config.spec import EvalSpec
from rfflow.runs.events import Pause, Ready, WarmStart
from rfflow.runs.run import RunCard
from rfflow.worker.evaluation.session import EvaluationSession
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.shared import Shared
from rfflow.worker.training.session import TrainingSession


class Context(Protocol):
    """What is global to a run while it has the device."""

    switch_seconds: float
    """What putting it in place and taking it away has taken so far."""

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Let all of it be in place inside."""
        ...

    def give(self, environ: Mapping[str, str]) -> None:
        """Let it find this in its environment from now on."""
        ...


class Session(Protocol):
    """One run, from its specification to its end."""

    holdings: RunTensors | None
    """What it owns on the device; known, and perhaps nothing, once it is prepared."""

    @property
    def context(self) -> Context:
        """What is global to it."""
        ...

    def prepare(
        self,
        warm_start: WarmStart | None = None,
        checkpoint: Path | None = None,
        *,
        step: int = 0,
        is_at_boundary: bool = False,
    ) -> Ready:
        """Take it to just before its next step, and say how its steps fall into chunks."""
        ...

    def advance(self) -> Pause:
        """Go on to the next pause; after a boundary, with the next chunk."""
        ...

    def load_weights(self, warm_start: WarmStart) -> None:
        """Take the weights of its parent once more, before the first step."""
        ...

    def keep_weights(self) -> None:
        """Keep the weights of the boundary for clones, if there are any."""
        ...

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Write what it goes on from; what is returned writes the rest, from another thread."""
        ...

    def hurry(self) -> None:
        """Pause at the next place from which a resume is exact."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def make_session(run: RunCard, shared: Shared, *, capture_output: bool = True, hydra: Any = None) -> Session:
    """Return the session of a run, by what the run is."""
    if isinstance(run.spec, EvalSpec):
        return EvaluationSession(run, shared, capture_output=capture_output, hydra=hydra)
    return TrainingSession(run, shared, capture_output=capture_output, hydra=hydra)
