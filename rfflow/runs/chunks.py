"""Where the chunks of a run end, and what came of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkPlan:
    """How a run's optimizer steps fall into chunks."""

    ends: tuple[int, ...]
    """The step (from 1) that ends each chunk, ascending; the last is the run's last step."""
    per_epoch: int
    """Chunks an epoch, C."""

    @property
    def steps(self) -> int:
        """All optimizer steps of the run."""
        return self.ends[-1]

    def __len__(self) -> int:
        return len(self.ends)


def chunk_ends(steps_per_epoch: int, chunks: int, total_steps: int, cycle: int = 1) -> tuple[int, ...]:
    """Return the steps that end a chunk.

    With S steps an epoch and C chunks these are the steps s where floor(s * C / S) grows; each epoch's end is one, and
    so is the run's last step, wherever ``max_steps`` puts it.

    Args:
        cycle: a chunk ends only where so many steps are done, or at the end of an epoch: a trainer that trains several
            steps on what it generated once must not be cut in between. S then counts cycles.

    Raises:
        ValueError: if there are more chunks than steps (or cycles) in an epoch.
    """
    cycles = -(-steps_per_epoch // cycle)
    if chunks > cycles:
        raise ValueError(f"{chunks} chunks do not fit into {cycles} {'steps' if cycle == 1 else 'cycles'} an epoch")
    ends = []
    for step in range(1, total_steps + 1):
        within = (step - 1) % steps_per_epoch + 1
        done = -(-within // cycle)
        is_whole = within % cycle == 0 or within == steps_per_epoch
        if (is_whole and done * chunks // cycles > (done - 1) * chunks // cycles) or step == total_steps:
            ends.append(step)
    return tuple(ends)


@dataclass(frozen=True)
class Answer:
    """What a model generated at a chunk's end, for people to read."""

    prompt: str
    answer: str
    reference: str
    """What the data says; empty where it says nothing."""


@dataclass(frozen=True)
class ChunkResult:
    """What a run had to show at the end of one chunk."""

    run: int
    chunk: int
    """Which chunk of the run, from 0, epochs counted through."""
    step: int
    """Optimizer steps done."""
    metrics: Mapping[str, float]
    """All that was known of the run there."""
    started: float
    """Seconds since the epoch at which the run got the device."""
    ended: float
    """... and at which it gave it back."""
    switch: float = 0.0
    """Seconds of that spent on restoring and saving the run's context."""
    evaluation: float = 0.0
    """... and on evaluating, as far as the trainer has logged it."""
    slot: int = 0
    """The slot where it was trained."""
    answers: tuple[Answer, ...] = ()
    """Some of what the model generated where ``evaluation.generate`` asks for it."""
    own: float | None = None
    """Seconds that were the run's, where it had the device together with others; None where it had it alone."""

    @property
    def seconds(self) -> float:
        """Time on the device."""
        return self.ended - self.started if self.own is None else self.own
