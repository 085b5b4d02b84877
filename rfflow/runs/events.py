"""What a run's coroutine tells when it gives the device back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rfflow.runs.chunks import Answer, ChunkPlan

Log = tuple[int, Mapping[str, float]]  # the step, and what the trainer logged there


@dataclass(frozen=True)
class Ready:
    """The trainer has counted its steps and is about to take the first."""

    plan: ChunkPlan
    foreseen: Foreseen | None = None
    """What is known of the metrics to come."""


@dataclass(frozen=True)
class Progress:
    """In the middle of a chunk; resume it at once."""

    step: int
    logs: tuple[Log, ...]
    can_checkpoint: bool = False
    """Whether a resume from here is exact."""


@dataclass(frozen=True)
class Boundary:
    """A chunk is done."""

    step: int
    logs: tuple[Log, ...]
    metrics: Mapping[str, float]
    answers: tuple[Answer, ...] = ()
    running: Mapping[str, float] = field(default_factory=dict)
    """Means of what a TRL trainer has counted since it logged last."""
    is_finite: bool = True
    """Whether the weights that are trained are all numbers."""


@dataclass(frozen=True)
class Finished(Boundary):
    """The last chunk is done, and the trainer with it."""


Pause = Ready | Progress | Boundary


@dataclass(frozen=True)
class Foreseen:
    """What is known of a run's metrics."""

    names: frozenset[str]
    evaluates: bool
    """Whether anything is evaluated or generated, so that there are metrics whose names begin with ``eval_``."""
    is_complete: bool
    """Whether it logs nothing else."""
    is_complete_for_evaluation: bool
    """The same of the metrics whose names begin with ``eval_``."""
    offered: frozenset[str] = frozenset()
    """Those of the names that people may be offered: not what another configuration would log."""
    evaluation_sets: tuple[str, ...] = ()
    """The names of several evaluation sets; ``eval_loss`` is the mean of theirs."""

    def may_have(self, metric: str) -> bool:
        """Whether the run may log a metric."""
        is_complete = self.is_complete_for_evaluation if metric.startswith("eval_") else self.is_complete
        return metric in self.names or not is_complete


@dataclass(frozen=True)
class WarmStart:
    """Where a clone takes its weights from, and where in the epoch it begins."""

    parent: int
    weights: Path
    """The parent's weights at its last boundary."""
    first_chunk: int
    """The chunk of the epoch that comes first; the others follow, wrapping round."""
