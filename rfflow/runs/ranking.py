"""Runs from best to worst; evaluations by the questions that both of any two have had."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rfflow.config.spec import Objective


@dataclass(frozen=True)
class Standing:
    """What ranks a run."""

    number: int
    metrics: Mapping[str, float]
    """As it stands."""
    past: tuple[tuple[int, Mapping[str, float]], ...] = ()
    """Of an evaluation: after how many questions what was known; empty of a run that is trained."""
    is_rough: bool = False
    """Whether it is an evaluation that ended before the last question."""

    @property
    def questions(self) -> float:
        """How many it has had; without end for a run that is trained, whose value is what it is."""
        return self.past[-1][0] if self.past else math.inf

    def after(self, questions: float) -> Mapping[str, float]:
        """Return what was known of it after so many questions, or after the last shard that ended before."""
        return next((known for end, known in reversed(self.past) if end <= questions), self.metrics)


def best_first(standings: Iterable[Standing], objective: Objective) -> list[int]:
    """Return the numbers of runs from best to worst.

    Runs that have answered equally many questions are in the order of their values. One that has answered fewer takes
    its place among them by the questions that it has answered. A rough one never comes before one that is not.
    """
    longest_first = sorted(
        standings, key=lambda each: (each.is_rough, -each.questions, *objective.sort_key(each.metrics), each.number)
    )
    ranked: list[Standing] = []
    for each in longest_first:
        place = len(ranked)
        while place and _beats(each, ranked[place - 1], objective):
            place -= 1
        ranked.insert(place, each)
    return [each.number for each in ranked]


def _beats(shorter: Standing, longer: Standing, objective: Objective) -> bool:
    if shorter.is_rough != longer.is_rough:
        return longer.is_rough
    common = min(shorter.questions, longer.questions)
    return objective.sort_key(shorter.after(common)) < objective.sort_key(longer.after(common))
