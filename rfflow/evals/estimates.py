"""Running metrics of a run, with intervals that hold together: at every planned look, and for all candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rfflow.evals.items import Item, Score
from rfflow.evals.statistics import Estimate, Range, anytime, critical, difference, proportion, ratio

Interval = Literal["auto", "exact", "anytime"]
_FOR_CLONES = 0.1
"""The part of what may go wrong that is kept for candidates of which nobody knew at the start."""


def share(alpha: float, candidates: int, late: int | None = None) -> float:
    """Return how much of what may go wrong falls to one candidate.

    The shares of all add up to no more than ``alpha``, however many clones are made.

    Args:
        alpha: for all together.
        candidates: how many there are at the start.
        late: of one that came later: how many had come later before it.
    """
    if late is None:
        return alpha * (1 - _FOR_CLONES) / max(1, candidates)
    return alpha * _FOR_CLONES * 6 / (math.pi * (late + 1)) ** 2


def estimate(
    scores: Sequence[Score],
    size: int,
    looks: tuple[int, ...],
    alpha: float,
    bounds: Range,
    interval: Interval = "auto",
) -> Estimate:
    """Estimate one metric of the whole set from the scores so far.

    Args:
        scores: of the questions in their order.
        size: N.
        looks: after how many questions the planned looks are.
        alpha: this candidate's share.
        bounds: the range of a score.
        interval: ``exact`` counts right answers (scores of 0 and 1, none missing) and shares ``alpha`` between the
            looks; ``anytime`` holds after every question; each falls back to ``auto`` where it cannot be had.
    """
    numerators, denominators = arrays(scores)
    is_mean = not any(isinstance(score, tuple) for score in scores)
    if interval == "anytime" and is_mean and None not in bounds:
        return anytime(numerators, size, alpha, bounds)
    if interval == "exact" and is_mean and np.isin(numerators, (0.0, 1.0)).all():
        before_end = sum(look < size for look in looks) or 1
        hits, n = int(numerators.sum()), len(numerators)
        return Estimate(hits / n if n else math.nan, *proportion(hits, n, size, alpha / before_end), n)
    return ratio(numerators, denominators, size, critical(looks, size, alpha), bounds)


def compare(
    ours: Sequence[Score],
    theirs: Sequence[Score],
    size: int,
    looks: tuple[int, ...],
    alpha: float,
    bounds: Range,
    sides: int = 2,
) -> Estimate:
    """Estimate by how much one candidate exceeds another on the whole set, from the questions that both have."""
    both = min(len(ours), len(theirs))
    (a, b), (x, y) = arrays(ours[:both]), arrays(theirs[:both])
    is_ratio = any(isinstance(score, tuple) for score in (*ours, *theirs))
    return difference(a, x, size, critical(looks, size, alpha, sides), bounds, (b, y) if is_ratio else None)


def arrays(scores: Sequence[Score]) -> tuple[np.ndarray, np.ndarray]:
    """Return numerators and denominators; NaN where there is no score."""
    numerators, denominators = [], []
    for score in scores:
        numerator, denominator = (
            score if isinstance(score, tuple) else (math.nan if score is None else float(score), 1.0)
        )
        numerators.append(numerator)
        denominators.append(denominator)
    return np.array(numerators, float), np.array(denominators, float)


def scores_of(items: Mapping[int, Item], metric: str, end: int) -> list[Score]:
    """Return the scores of the first questions; ``None`` where there is none."""
    return [items[position].scores.get(metric) if position in items else None for position in range(end)]


def running_metrics(
    items: Mapping[int, Item],
    end: int,
    size: int,
    looks: tuple[int, ...],
    alpha: float,
    ranges: Mapping[str, Range],
    interval: Interval = "auto",
) -> dict[str, float]:
    """Return what is known after ``end`` questions: each metric with its limits, and what the answers took."""
    found: dict[str, float] = {}
    for name, bounds in ranges.items():
        value = estimate(scores_of(items, name, end), size, looks, alpha, bounds, interval)
        found |= {f"eval_{name}": value.value, f"eval_{name}_low": value.low, f"eval_{name}_high": value.high}
    seen = [items[position] for position in range(end) if position in items]
    found["eval_missing"] = float(sum(item.error is not None for item in seen))
    answered = [item for item in seen if item.answer is not None]
    if answered:
        found["eval_latency"] = sum(item.latency for item in answered) / len(answered)
    if any(item.usage for item in seen):
        found["eval_tokens"] = float(sum(sum(item.usage.values()) for item in seen))
    if any(item.cost for item in seen):
        found["eval_cost"] = sum(item.cost for item in seen)
    return {name: value for name, value in found.items() if value == value}


def metric_names(metrics: Sequence[str]) -> frozenset[str]:
    """Return all that :func:`running_metrics` may return."""
    own = {f"eval_{name}{end}" for name in metrics for end in ("", "_low", "_high")}
    return frozenset(own | {"eval_missing", "eval_latency", "eval_tokens", "eval_cost"})
