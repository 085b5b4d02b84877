"""Candidates against each other, on the questions that both have answered: that is what decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    share: float = 1.0
    """Of what may go wrong; those of all candidates add up to 1 at most (:func:`rfflow.evals.estimates.shares`)."""
    questions: Sequence[str] = ()
    """Their ids, in the same order; empty where they are known to be those of the others."""

    @property
    def size(self) -> int:
        """All questions."""
        return self.looks[-1]


Against = Literal["any", "one", "better"]
"""Compared with whom: whoever leads, as the data say; one that was chosen beforehand; or one that may be better."""


def ahead(candidate: Candidate, other: Candidate, against: Against = "any") -> Estimate:
    """Estimate by how much a candidate's score exceeds another's on the whole set.

    Args:
        candidate: one of them.
        other: whom it is compared with, on the same questions (:func:`are_comparable`).
        against: what may go wrong is 1 - level in all comparisons together. With ``any`` that is of every pair, since
            who leads is found in the same answers: a pair gets 2 s t of it, if s and t are the shares of both. With
            ``one`` it is of the comparisons with a fixed other, and with ``better`` of one side only: that the best of
            all is found to be behind somebody, each of whom has his own share of it.
    """
    alpha, sides = _part(candidate, other, against), 1 if against == "better" else 2
    looks = tuple(sorted({*candidate.looks, *other.looks}))
    return compare(candidate.scores, other.scores, candidate.size, looks, alpha, candidate.bounds, sides)


def beyond(candidate: Candidate, other: Candidate, against: Against = "any") -> Estimate | None:
    """Estimate the same for questions that are not in the set; ``None`` until both have answered all that are."""
    if min(len(candidate.scores), len(other.scores)) < candidate.size:
        return None
    return compare(candidate.scores, other.scores, math.inf, (), _part(candidate, other, against), candidate.bounds)


def are_comparable(candidate: Candidate, other: Candidate) -> bool:
    """Whether both have had the same questions, as far as both have had any, out of as many."""
    same = all(one == two for one, two in zip(candidate.questions, other.questions, strict=False))
    return candidate.size == other.size and same


def _part(candidate: Candidate, other: Candidate, against: Against) -> float:
    parts = {"any": 2 * candidate.share * other.share, "one": candidate.share, "better": other.share}
    return (1 - candidate.level) * parts[against]


def leader(candidates: Mapping[int, Candidate], direction: str) -> int | None:
    """Return who is best on the questions that all of them have; of equals, the first."""
    there = {number: each for number, each in candidates.items() if each.scores}
    if not there:
        return None
    common = min(len(each.scores) for each in there.values())
    sign = 1 if direction == "maximize" else -1

    def key(number: int) -> tuple[bool, float, int]:
        mean = value(there[number].scores[:common])
        return (mean is not None, sign * (mean or 0.0), -number)

    return max(there, key=key)


def value(scores: Sequence[Score]) -> float | None:
    """Return the mean, or the ratio of the sums, of the scores that are there; ``None`` where there are none."""
    pairs = [score if isinstance(score, tuple) else (score, 1.0) for score in scores if score is not None]
    total = sum(denominator for _, denominator in pairs)
    return sum(numerator for numerator, _ in pairs) / total if total else None
