"""Successive halving and Hyperband, with chunks as the resource (Jamieson and Talwalkar 2016; Li et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rfflow.control.ops import Resume, Stop
from rfflow.control.selection import Numbers
from rfflow.errors import ConfigError
from rfflow.policies.scene import Decision, RunView, Scene


class Halving:
    """Synchronous successive halving: the runs that meet at a rung are ranked, and the best ceil(n / eta) go on.

    The rungs are ``min_chunks``, ``min_chunks * eta``, ``min_chunks * eta**2``, ... chunks. A rung is judged when
    nobody is on the way to it any more, by what each run had reached there, so that the order in which the runs get the
    device does not matter. A run that comes late (a clone, a later trial) is judged when it arrives, against all who
    were there before it.

    Args:
        eta: how many runs of which one goes on.
        min_chunks: the first rung; a higher one is dearer, and kinder to runs that start slowly.
        revive: let the next best go on in the place of a run that failed, was deleted or was stopped by a person
            after it had been chosen.
    """

    def __init__(self, eta: int = 2, min_chunks: int = 1, revive: bool = True):
        self.eta = at_least(2, eta, "policy.eta")
        self.min_chunks = at_least(1, min_chunks, "policy.min_chunks")
        self.revive = revive

    def decide(self, scene: Scene) -> list[Decision]:
        """Stop those whom a rung has left behind; let their successors go on."""
        return self.judge(scene, scene.runs)

    def judge(self, scene: Scene, cohort: Sequence[RunView]) -> list[Decision]:
        """Decide for the runs of a cohort, which is ranked by itself."""
        decisions: list[Decision] = []
        last = max((run.chunks for run in cohort), default=0)
        for rung in self.rungs(last):
            if scene.is_due(rung, cohort):
                decisions += self._judge_rung(scene, cohort, rung)
        return decisions

    def rungs(self, chunks: int) -> list[int]:
        """Return the chunks after which runs are ranked; the last chunk is none of them."""
        rungs = []
        rung = self.min_chunks
        while rung < chunks:
            rungs.append(rung)
            rung *= self.eta
        return rungs

    def _judge_rung(self, scene: Scene, cohort: Sequence[RunView], rung: int) -> list[Decision]:
        # A run lost after the next rung is made good there.
        on_the_way = [run for run in cohort if rung <= run.chunk < rung * self.eta]
        lost = [run for run in on_the_way if self.revive and _is_lost(scene, run)]
        if not lost and not any(run.is_live and run.chunk == rung for run in cohort):
            return []  # it was judged, and all have gone on
        numbers = {run.number for run in cohort}
        there = [run for run in scene.ranked_at(rung) if run.number in numbers]
        if all(scene.objective.value(run.history[rung - 1]) is None for run in there):
            return []  # nothing was evaluated there, say: nobody is worse than the others
        room = math.ceil(len(there) / self.eta)
        able = [run for run in there if is_number(scene.objective.value(run.history[rung - 1]))]
        able = [run for run in able if run not in lost]
        chosen = {run.number for run in able[:room]}
        decisions = []
        for place, run in enumerate(there, 1):
            if run.chunk != rung:
                continue  # it has gone on
            why = f"place {place} of {len(there)} after chunk {rung}; {room} go on"
            if run.is_live and run.number not in chosen:
                decisions.append(Decision(Stop(Numbers((run.number,))), why))
            elif lost and run.state == "stopped" and run.number in chosen and _by_policy(scene, run):
                decisions.append(Decision(Resume(Numbers((run.number,))), f"{why}, and a better one left"))
        return decisions


class Hyperband:
    """Halving in several brackets at once, from the most to the least hasty, because nobody knows which is right.

    Bracket s starts with the rung ``eta**s`` chunks; the share of the runs that go into it is Hyperband's, so that all
    brackets cost about the same. Which bracket a run belongs to follows from its number.

    Args:
        eta: as of :class:`Halving`.
        chunks: the chunks of a run, from which the number of brackets follows; None takes the most that any run has.
    """

    def __init__(self, eta: int = 2, chunks: int | None = None, revive: bool = True):
        self.eta = at_least(2, eta, "policy.eta")
        self.chunks = None if chunks is None else at_least(1, chunks, "policy.chunks")
        self.revive = revive

    def decide(self, scene: Scene) -> list[Decision]:
        """Let every bracket judge its own."""
        chunks = self.chunks or max((run.chunks for run in scene.runs), default=1)
        pattern = bracket_pattern(self.eta, chunks)
        brackets: dict[int, list[RunView]] = {}
        for run in scene.runs:
            brackets.setdefault(pattern[run.number % len(pattern)], []).append(run)
        return [
            decision
            for bracket, runs in sorted(brackets.items())
            for decision in Halving(self.eta, self.eta**bracket, self.revive).judge(scene, runs)
        ]


def bracket_pattern(eta: int, chunks: int) -> list[int]:
    """Return the brackets of runs 0, 1, 2, ..., which then repeat: Hyperband's sizes, evenly mixed.

    ``eta**bracket`` is the bracket's first rung. With R chunks and s_max = floor(log_eta R), Hyperband starts
    ceil((s_max + 1) / (s + 1) * eta**s) runs where the first rung is R / eta**s.
    """
    most = 0
    while eta ** (most + 1) <= chunks:
        most += 1
    sizes = [math.ceil((most + 1) / (s + 1) * eta**s) for s in range(most, -1, -1)]
    pattern: list[int] = []
    taken = [0] * len(sizes)
    for _ in range(sum(sizes)):  # next comes the bracket that is furthest behind its share
        bracket = max(range(len(sizes)), key=lambda b: (sizes[b] * (len(pattern) + 1) / sum(sizes) - taken[b], -b))
        taken[bracket] += 1
        pattern.append(bracket)
    return pattern


def is_number(value: float | None) -> bool:
    """Whether a metric is there and did not diverge."""
    return value is not None and math.isfinite(value)


def at_least(least: int, value: object, name: str) -> int:
    """Return a whole number.

    Raises:
        ConfigError: if it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}. Allowed: a whole number from {least} up.")
    return value


def _is_lost(scene: Scene, run: RunView) -> bool:
    return run.state in ("failed", "deleted") or (run.state == "stopped" and not _by_policy(scene, run))


def _by_policy(scene: Scene, run: RunView) -> bool:
    return (scene.stopped_by(run.number) or "").startswith("policy/")
