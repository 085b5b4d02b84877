"""What a policy sees and what it answers: plain data, so that a policy needs no engine, no clock and no torch.

A policy is any class with the method :meth:`Policy.decide`, named in the configuration by ``_target_``::

    policy:
      _target_: my_package.StopTheLast
      patience: 3

Decide from the scene alone and keep no notes between calls: everything that has happened is in it, so the same policy
goes on after a crash, and can be replayed over an experiment of last week.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from rfflow.config.spec import Objective
from rfflow.control.journal import Past
from rfflow.control.ops import Op
from rfflow.evals.comparison import Candidate


@dataclass(frozen=True)
class RunView:
    """One run as it stands at a boundary."""

    number: int
    state: str
    """queued, running, stopped, completed, failed or deleted."""
    chunks: int
    """How many chunks the run has in all."""
    history: tuple[Mapping[str, float], ...] = ()
    """What was known of it at the end of each chunk done: what was evaluated there, and logged in that chunk."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its resolved configuration."""
    parent: int | None = None
    """The run that it was cloned from."""
    age: int = 0
    """Chunks behind its weights: its own, and those of its ancestors where it started warm."""
    candidate: Candidate | None = None
    """Of an evaluation, the scores of its answers by the objective; for policies with ``reads_scores`` only."""

    @property
    def chunk(self) -> int:
        """Chunks done."""
        return len(self.history)

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was known of it at the end of its last chunk."""
        return self.history[-1] if self.history else {}

    @property
    def is_live(self) -> bool:
        """Whether it still asks for the device."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Scene:
    """Every run of the experiment at a moment at which each of them is at a boundary."""

    runs: tuple[RunView, ...]
    objective: Objective = field(default_factory=Objective)
    ops: tuple[Past, ...] = ()
    """What has been applied so far, in order."""

    def run(self, number: int) -> RunView | None:
        """Return a run by its number."""
        return next((run for run in self.runs if run.number == number), None)

    def ranked_at(self, chunk: int) -> list[RunView]:
        """Return all runs that have done so many chunks, best first, by their values at the end of that chunk.

        Whatever they have done since, and whatever became of them, does not matter; so asked twice about the same
        runs the answer is the same. A run that diverged (NaN) comes last; ties go by number.
        """
        if chunk not in self._ranked:
            key = self.objective.sort_key
            there = [run for run in self.runs if run.chunk >= chunk]
            self._ranked[chunk] = sorted(there, key=lambda run: (*key(run.history[chunk - 1]), run.number))
        return list(self._ranked[chunk])

    def is_due(self, chunk: int, among: Sequence[RunView] | None = None) -> bool:
        """Whether somebody has done so many chunks, and no live run is about to.

        Runs go on in lock-step, so whoever is further behind came late (a clone, say) and is not waited for.
        """
        runs = self.runs if among is None else among
        return any(run.chunk >= chunk for run in runs) and not any(
            run.is_live and run.chunk == chunk - 1 for run in runs
        )

    def stopped_by(self, run: int) -> str | None:
        """Return who stopped a run last, if anybody did."""
        return self._stoppers.get(run)

    def is_in_hand(self, run: int) -> bool:
        """Whether a person has stopped or resumed the run: then it is theirs, and no policy touches it again."""
        return run in self._in_hand

    @cached_property
    def _ranked(self) -> dict[int, list[RunView]]:
        return {}

    @cached_property
    def _stoppers(self) -> dict[int, str]:
        return {op.run: op.by for op in self.ops if op.verb == "stop"}

    @cached_property
    def _in_hand(self) -> set[int]:
        return {op.run for op in self.ops if op.by == "person" and op.verb in ("stop", "resume")}


@dataclass(frozen=True)
class Decision:
    """An op that a policy asks for."""

    op: Op
    why: str
    """In a few words, for the journal."""
    rule: str | None = None
    """The rule that asked for it, where the policy has several."""


class Policy(Protocol):
    """Watches the boundaries of an experiment and issues ops."""

    def decide(self, scene: Scene) -> Sequence[Decision]:
        """Return the ops to apply now; called after every chunk, and whenever a run has ended or changed.

        A decision that is already carried out must not be asked for again.
        """
        ...
