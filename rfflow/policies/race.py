"""Racing: an evaluation stops when it is surely behind the leading one (Maron and Moore 1994), on paired answers."""

from __future__ import annotations

from dataclasses import replace

from rfflow.control.ops import Stop
from rfflow.control.selection import Numbers
from rfflow.errors import ConfigError
from rfflow.evals.comparison import Candidate, ahead, are_comparable, leader
from rfflow.policies.scene import Decision, Scene


class Race:
    """Stop an evaluation whose answers are significantly worse than those of the leading one.

    It is asked at every chunk, when all who can reach it are there, and compares on the questions that both have, one
    side only. What may go wrong is shared by all candidates and all planned looks: with ``level`` 0.95, the best of the
    whole set is stopped in at most one of twenty experiments. A missing answer speaks for whoever misses it.

    Args:
        level: how surely the best one is kept.
        margin: stop only who is behind by more than that: who is hardly worse may be cheaper.
    """

    reads_scores = True
    """Its views come with the scores of single answers."""

    def __init__(self, level: float = 0.95, margin: float = 0.0):
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0.5 <= level < 1:
            raise ConfigError(f"policy.level is {level!r}. Allowed: from 0.5 to below 1.")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
            raise ConfigError(f"policy.margin is {margin!r}. Allowed: a number from 0 up.")
        self.level, self.margin = level, margin

    def decide(self, scene: Scene) -> list[Decision]:
        """Stop those who are surely behind."""
        decisions = []
        maximizes = scene.objective.direction == "maximize"
        for chunk in sorted({run.chunk for run in scene.runs if run.is_live and run.candidate and run.chunk}):
            there = [run for run in scene.runs if run.candidate is not None and run.chunk >= chunk]
            if len(there) < 2 or not scene.is_due(chunk, there):
                continue
            seen = {run.number: self._until(run.candidate, chunk) for run in there if run.candidate is not None}
            first = leader(seen, scene.objective.direction)
            for run in there:
                if first is None or not run.is_live or run.chunk != chunk or run.number == first:
                    continue
                if not are_comparable(seen[run.number], seen[first]):
                    continue
                gap = ahead(seen[run.number], seen[first], "better")
                if gap.n < seen[run.number].size and (gap.high < -self.margin if maximizes else gap.low > self.margin):
                    why = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] to run {first} on {gap.n} questions"
                    decisions.append(Decision(Stop(Numbers((run.number,))), why))
        return decisions

    def _until(self, candidate: Candidate, chunk: int) -> Candidate:
        """Return what was known of a candidate at the end of a chunk."""
        end = candidate.looks[min(chunk, len(candidate.looks)) - 1]
        return replace(candidate, scores=candidate.scores[:end], level=self.level)
