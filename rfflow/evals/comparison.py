"""Candidates against each other, on the questions that both have answered: that is what decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rfflow.evals.estimates import compare
from rfflow.evals.items import Score
from rfflow.evals.statistics import Estimate, Range


@dataclass(frozen=True)
class Candidate:
    """What is known of one."""

    number: int
    scores: Sequence[Score]
    """Of the questions so far, in their order."""
    looks: tuple[int, ...]
    """After how many questions it is looked at; the last is all of them."""
    bounds: Range
    level: float = 0.95

    @property
    def size(self) -> int:
        """All questions."""
        return self.looks[-1]


def ahead(
    candidate: Candidate, other: Candidate, candidates: int, *, sides: int = 2, looks: tuple[int, ...] | None = None
) -> Estimate:
    """Estimate by how much a candidate's score exceeds another's on the whole set.

    Args:
        candidate: one of them.
        other: whom it is compared with.
        candidates: how many there are: each comparison with one of them gets an equal share of what may go wrong.
        sides: 1 where only one direction counts.
        looks: when both are looked at, if not as planned for the candidate.
    """
    alpha = (1 - candidate.level) / max(1, candidates - 1)
    looks = looks or candidate.looks
    return compare(candidate.scores, other.scores, candidate.size, looks, alpha, candidate.bounds, sides)


def leader(candidates: Mapping[int, Candidate], direction: str) -> int | None:
    """Return who is best on the questions that all of them have; of equals, the first."""
    there = {number: each for number, each in candidates.items() if each.scores}
    if not there:
        return None
    common = min(len(each.scores) for each in there.values())
    sign = 1 if direction == "maximize" else -1
    return max(there, key=lambda number: (sign * value(there[number].scores[:common]), -number))


def value(scores: Sequence[Score]) -> float:
    """Return the mean, or the ratio of the sums, of the scores that are there; minus infinity where there are none."""
    pairs = [score if isinstance(score, tuple) else (score, 1.0) for score in scores if score is not None]
    total = sum(denominator for _, denominator in pairs)
    return sum(numerator for numerator, _ in pairs) / total if total else float("-inf")
