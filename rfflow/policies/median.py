"""The median stopping rule (Golovin et al. 2017, section 3.2.2), for runs in lock-step."""

from __future__ import annotations

from statistics import fmean, median

from rfflow.config.spec import Objective
from rfflow.control.ops import Stop
from rfflow.control.selection import Numbers
from rfflow.policies.halving import at_least, is_number
from rfflow.policies.scene import Decision, RunView, Scene


class Median:
    """Stop a run whose best value so far is worse than the median of the others' averages so far.

    It is asked at every chunk, when all who can reach it are there. Averages lag behind while the runs improve, so a
    run must be clearly weak to be stopped, and how many are stopped follows from how far they lie apart.

    Args:
        min_chunks: chunks that every run gets.
        min_runs: judge only where so many runs can be compared.
    """

    def __init__(self, min_chunks: int = 2, min_runs: int = 3):
        self.min_chunks = at_least(1, min_chunks, "policy.min_chunks")
        self.min_runs = at_least(2, min_runs, "policy.min_runs")

    def decide(self, scene: Scene) -> list[Decision]:
        """Stop those who are clearly weak, and those who diverged."""
        decisions = []
        for chunk in sorted({run.chunk for run in scene.runs if run.is_live and self.min_chunks <= run.chunk}):
            there = scene.ranked_at(chunk)
            if len(there) < self.min_runs or not scene.is_due(chunk):
                continue
            objective = scene.objective.standing(metrics for run in there for metrics in run.history[:chunk])
            values = {run.number: _badness(objective, run, chunk) for run in there}
            averages = {number: fmean(own) for number, own in values.items() if own}
            for run in there:
                if run.is_live and run.chunk == chunk and (why := self._weakness(scene, run, values, averages)):
                    decisions.append(Decision(Stop(Numbers((run.number,))), why))
        return decisions

    def _weakness(
        self, scene: Scene, run: RunView, values: dict[int, list[float]], averages: dict[int, float]
    ) -> str | None:
        own = values[run.number]
        if not own:
            return f"{scene.objective.metric} is not a number"
        others = [average for number, average in averages.items() if number != run.number]
        if not others or min(own) <= median(others):
            return None
        return f"its best is worse than the median of the others' averages over {run.chunk} chunks"


def _badness(objective: Objective, run: RunView, chunks: int) -> list[float]:
    """Return a run's values, turned so that less is better; those that are no numbers are left out."""
    sign = 1 if objective.direction == "minimize" else -1
    values = [metrics.get(objective.metric) for metrics in run.history[:chunks]]
    return [sign * value for value in values if value is not None and is_number(value)]
