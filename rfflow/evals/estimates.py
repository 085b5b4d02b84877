"""Running metrics of a run, with intervals that hold together: at every planned look, and for all candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rfflow.evals.items import Item, Score
from rfflow.evals.statistics import (
    Estimate,
    Range,
    anytime,
    beyond,
    critical,
    difference,
    one_look,
    proportion,
    ratio,
    total,
)

Interval = Literal["auto", "exact", "anytime"]
_FOR_CLONES = 0.1
"""The part of what may go wrong that is kept for candidates of which nobody knew at the start."""


def shares(parents: Mapping[int, int | None], foreseen: int | None = None) -> dict[int, float]:
    """Return how much of what may go wrong falls to each candidate.

    They add up to no more than 1, however many clones are made.

    Args:
        parents: of each candidate by its number; ``None`` of those that an experiment begins with.
        foreseen: how many there will be; ``None`` is as many as it begins with.
    """
    first = [number for number, parent in parents.items() if parent is None]
    late = sorted(number for number, parent in parents.items() if parent is not None)
    count = max(1, len(first), foreseen or 0)
    on_time = (*first, *late[: count - len(first)])
    found = dict.fromkeys(on_time, (1 - _FOR_CLONES) / count)
    for place, number in enumerate(late[count - len(first) :], start=1):
        found[number] = _FOR_CLONES * 6 / (math.pi * place) ** 2
    return found


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
    size: float,
    looks: tuple[int, ...],
    alpha: float,
    bounds: Range,
    sides: int = 2,
) -> Estimate:
    """Estimate by how much one candidate exceeds another on the whole set, from the questions that both have.

    Of a set without end (``size`` is infinity), which is looked at once, there are no ``looks``.
    """
    both = min(len(ours), len(theirs))
    (a, b), (x, y) = arrays(ours[:both]), arrays(theirs[:both])
    is_ratio = any(isinstance(score, tuple) for score in (*ours, *theirs))
    c = critical(looks, int(size), alpha, sides) if looks else one_look(alpha, sides)
    return difference(a, x, size, c, bounds, (b, y) if is_ratio else None)


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
    """Return what is known after ``end`` questions: each metric with its limits, and what the answers took.

    After the last question each metric has the limits for questions that are not in the set, besides. Tokens and cost
    are those so far, and with ``_total`` what they will be for the whole set. What is not known at all is left out.
    """
    found: dict[str, float] = {}
    for name, bounds in ranges.items():
        scores = scores_of(items, name, end)
        found |= _with_limits(f"eval_{name}", estimate(scores, size, looks, alpha, bounds, interval))
        if end >= size:
            others = beyond(*arrays(scores), alpha, bounds)
            found |= {f"eval_{name}_beyond_low": others.low, f"eval_{name}_beyond_high": others.high}
    seen = [items[position] for position in range(end) if position in items]
    found["eval_missing"] = float(sum(item.error is not None for item in seen))
    answered = [item for item in seen if item.answer is not None]
    if answered:
        found["eval_latency"] = sum(item.latency for item in answered) / len(answered)
    took = {
        "tokens": {item.position: float(sum(item.usage.values())) for item in answered if item.usage},
        "cost": {item.position: item.cost for item in seen if item.cost},
    }
    for name, taken in took.items():
        if taken:
            found[f"eval_{name}"] = sum(taken.values())
            counts = [taken.get(position, 0.0) for position in range(end)]
            whole = total(counts, size, critical(looks, size, alpha), (0.0, None))
            found |= _with_limits(f"eval_{name}_total", whole)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _with_limits(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def metric_names(metrics: Sequence[str]) -> frozenset[str]:
    """Return all that :func:`running_metrics` may return."""
    ends = ("", "_low", "_high", "_beyond_low", "_beyond_high")
    own = {f"eval_{name}{end}" for name in metrics for end in ends}
    totals = {f"eval_{name}{end}" for name in ("tokens", "cost") for end in ("", "_total", "_total_low", "_total_high")}
    return frozenset(own | totals | {"eval_missing", "eval_latency"})
