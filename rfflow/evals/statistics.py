"""Running estimates over a random permutation of a finite set of questions, with intervals that may be looked at.

All intervals of an experiment hold together: at all planned looks, and for all candidates. One formula serves means
(every denominator 1), ratios of sums (precision, recall, micro-F1) and paired differences: residuals are linearised,
the variance has the finite-population correction, and two pseudo-items at each end of the range keep a run of right
answers from looking certain. At the last question the value is known: the interval is that value.

The set is the population: an interval says where the value on *all of these questions* will be found. :func:`beyond` is
the other reading, for questions that are not in the set. Neither knows of a biased judge or of sampled answers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Range = tuple[float | None, float | None]
"""The least and greatest value that one item can have; ``None`` where there is no bound."""

UNIT: Range = (0.0, 1.0)
# scipy is imported where it is used: it takes a while, and most of what imports this module never comes that far.
_PSEUDO_ITEMS = 4.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True)
class Estimate:
    """A value on the whole set, as far as it can be known from the items seen."""

    value: float
    """Of the items with a score; NaN if there are none."""
    low: float
    high: float
    n: int
    """Items seen, those without a score included."""
    missing: int = 0
    """Items that were tried and have no score."""


@functools.lru_cache(maxsize=4096)
def critical(looks: tuple[int, ...], size: int, alpha: float, sides: int = 2) -> float:
    """Return by how many standard errors an estimate may be off at *any* of the planned looks.

    Under a random permutation the standardised sums behave as a Brownian motion at the times n / (N - n). The chance
    of leaving the band is found by the recursion of Armitage, McPherson and Rowe (1969), with Gauss-Legendre nodes.

    Args:
        looks: how many items are seen at each, ascending; one at ``size`` needs no allowance.
        size: N, the items of the set.
        alpha: the chance of being off anywhere; divide it by the number of candidates.
        sides: 1 where only one direction counts.
    """
    from scipy.optimize import brentq

    times = tuple(n / (size - n) for n in looks if 0 < n < size)
    if not times:
        return 0.0
    return float(brentq(lambda c: _crossing(times, c, sides) - alpha, 1e-3, 12.0, xtol=1e-5))


def _crossing(times: Sequence[float], c: float, sides: int) -> float:
    from scipy import stats

    low = -c if sides == 2 else -9.0
    nodes = (c + low) / 2 + (c - low) / 2 * _NODES
    weights = (c - low) / 2 * _WEIGHTS
    density = stats.norm.pdf(nodes)
    for before, now in itertools.pairwise(times):
        r = math.sqrt(before / now)  # how the looks are correlated
        s = math.sqrt(max(1 - r * r, 1e-12))
        density = stats.norm.pdf((nodes[:, None] - r * nodes[None, :]) / s) / s @ (weights * density)
    return 1.0 - float(weights @ density)


def limits(
    numerators: ArrayLike, denominators: ArrayLike, size: float, c: float, bounds: Range = UNIT
) -> tuple[Floats, Floats, Floats]:
    """Return estimate, lower and upper limit of sum(numerators) / sum(denominators) over the whole set.

    Args:
        numerators: of the n items seen, in the last axis; axes before it are separate estimates.
        denominators: the same shape; ones for a mean.
        size: N; infinity for a sample of something without end.
        c: standard errors allowed, from :func:`critical`.
        bounds: the range of an item's own value.
    """
    from scipy import stats

    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    n, low, high = a.shape[-1], bounds[0], bounds[1]
    floor, ceiling = -np.inf if low is None else low, np.inf if high is None else high
    mean_b = b.mean(-1) if n else np.zeros(a.shape[:-1])
    with np.errstate(all="ignore"):
        value = a.sum(-1) / b.sum(-1)
        if n >= size:
            return value, value, value
        if n < 2:
            return value, np.full_like(value, floor), np.full_like(value, ceiling)
        residuals = (a - value[..., None] * b) / mean_b[..., None]
        variance = residuals.var(-1, ddof=1)
        effective = n if math.isinf(size) else n * (size - 1) / (size - n)
        t = float(stats.t.isf(stats.norm.sf(c), n - 1))
        if low is None or high is None:
            half, middle = t * np.sqrt(variance / effective), value
        else:
            weight = effective + _PSEUDO_ITEMS
            middle = (effective * value + _PSEUDO_ITEMS / 2 * (low + high)) / weight
            ends = _PSEUDO_ITEMS / 2 * ((high - middle) ** 2 + (low - middle) ** 2)
            half = t * np.sqrt((effective * (variance + (value - middle) ** 2) + ends) / weight / weight)
        unknown = mean_b == 0
        lower = np.where(unknown, floor, np.maximum(floor, middle - half))
        upper = np.where(unknown, ceiling, np.minimum(ceiling, middle + half))
    return value, lower, upper


def ratio(numerators: ArrayLike, denominators: ArrayLike, size: float, c: float, bounds: Range = UNIT) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) of the whole set: a precision, a recall, a micro-F1.

    Where an item has no score its numerator is NaN (its denominator may be, too). It is not made up: the lower limit
    is as if it had the worst, the upper as if it had the best value of the range, with an ordinary denominator.
    """
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    gone = np.isnan(a) | np.isnan(b)
    if not gone.any():
        found = limits(a, b, size, c, bounds)
        return Estimate(float(found[0]), float(found[1]), float(found[2]), len(a))
    seen = ~gone
    total = b[seen].sum()
    value = float(a[seen].sum() / total) if total else math.nan
    floor, ceiling = bounds
    b = np.where(np.isnan(b), b[seen].mean() if seen.any() else 1.0, b)
    ends = []
    for end, filler in ((1, floor), (2, ceiling)):
        if filler is None:  # nothing can be said of what is missing
            ends.append(-math.inf if end == 1 else math.inf)
        else:
            ends.append(float(limits(np.where(gone, filler * b, a), b, size, c, bounds)[end]))
    return Estimate(value, ends[0], ends[1], len(a), int(gone.sum()))


def mean(scores: ArrayLike, size: float, c: float, bounds: Range = UNIT) -> Estimate:
    """Estimate the mean of the whole set; NaN is a missing score."""
    scores = np.asarray(scores, float)
    return ratio(scores, np.ones_like(scores), size, c, bounds)


def total(scores: ArrayLike, size: int, c: float, bounds: Range = (None, None)) -> Estimate:
    """Estimate the sum over the whole set: tokens, seconds, money.

    Approximate where the values are very unequal: of unbounded skewed ones the intervals hold less than they say.
    """
    found = mean(scores, size, c, bounds)
    return Estimate(size * found.value, size * found.low, size * found.high, found.n, found.missing)


def difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    size: float,
    c: float,
    bounds: Range = UNIT,
    denominators: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:
    """Estimate by how much one candidate exceeds another, paired: both have answered the same items, in this order.

    Args:
        ours, theirs: scores (or numerators) of both; NaN is missing, and counts as whatever speaks against a decision.
        size: N; infinity for questions that are not in the set.
        c: standard errors allowed.
        bounds: the range of an item's score.
        denominators: of ratios, for both.
    """
    x, y = np.asarray(ours, float), np.asarray(theirs, float)
    wide: Range = (None, None) if bounds[0] is None or bounds[1] is None else (bounds[0] - bounds[1], _span(bounds))
    if denominators is None:
        gone = np.isnan(x) | np.isnan(y)
        low, high = bounds
        if not gone.any() or low is None or high is None:
            return mean(x - y, size, c, wide)
        pairs = np.ones_like(x)
        worst = np.where(np.isnan(x), low, x) - np.where(np.isnan(y), high, y)
        best = np.where(np.isnan(x), high, x) - np.where(np.isnan(y), low, y)
        value = float((x - y)[~gone].mean()) if (~gone).any() else math.nan
        lower, upper = limits(worst, pairs, size, c, wide)[1], limits(best, pairs, size, c, wide)[2]
        return Estimate(value, float(lower), float(upper), len(x), int(gone.sum()))
    bx, by = (np.asarray(b, float) for b in denominators)
    seen = ~(np.isnan(x) | np.isnan(y) | np.isnan(bx) | np.isnan(by))
    if not seen.any() or not bx[seen].sum() or not by[seen].sum():
        return Estimate(math.nan, *((-math.inf, math.inf) if wide[0] is None else wide), len(x), int((~seen).sum()))  # type: ignore[arg-type]
    rx, ry = x[seen].sum() / bx[seen].sum(), y[seen].sum() / by[seen].sum()
    items = np.full(len(x), math.nan)
    items[seen] = (x[seen] - rx * bx[seen]) / bx[seen].mean() - (y[seen] - ry * by[seen]) / by[seen].mean() + (rx - ry)
    return mean(items, size, c, wide)


def _span(bounds: Range) -> float:
    assert bounds[0] is not None and bounds[1] is not None
    return bounds[1] - bounds[0]


def beyond(numerators: ArrayLike, denominators: ArrayLike, alpha: float, bounds: Range = UNIT) -> Estimate:
    """Estimate the value for questions that are not in the set, as if the set were a random sample of such.

    It is one look, at the end: ``alpha`` needs no share for others. NaN is a missing score, as in :func:`ratio`.
    """
    return ratio(numerators, denominators, math.inf, one_look(alpha), bounds)


def one_look(alpha: float, sides: int = 2) -> float:
    """Return the same as :func:`critical` for a single look at a set without end."""
    from scipy import stats

    return float(stats.norm.isf(alpha / sides))


def proportion(hits: int, n: int, size: int, alpha: float) -> tuple[float, float]:
    """Return exact limits of a share of right answers, by the hypergeometric distribution; for ``interval=exact``.

    Args:
        hits: right answers among the ``n`` seen.
        n: items seen, of ``size``.
        size: N.
        alpha: one look's share of the whole.
    """
    from scipy import stats

    if n >= size:
        return hits / size, hits / size
    possible = np.arange(hits, size - (n - hits) + 1)
    upper = possible[stats.hypergeom.cdf(hits, size, possible, n) > alpha / 2]
    lower = possible[stats.hypergeom.sf(hits - 1, size, possible, n) > alpha / 2]
    return float(lower.min()) / size, float(upper.max()) / size


def anytime(scores: ArrayLike, size: int, alpha: float, bounds: Range = UNIT, grid: int = 1001) -> Estimate:
    """Estimate a mean with limits that hold after every single item at once; for ``interval=anytime``.

    For those who look when they like: no looks are planned, and nothing is approximated, which costs width. A value m
    is refused once bets against it would have made 1/alpha of 1 (Waudby-Smith and Ramdas, "Estimating means of bounded
    random variables by betting", 2024, section 5: sampling without replacement).

    Args:
        scores: in the order of the permutation; NaN is missing, and is taken at its worst and at its best.
        size: N.
        alpha: the chance of ever being wrong.
        bounds: the range of a score, which must be finite.
        grid: how many values of the mean are looked at.
    """
    if bounds[0] is None or bounds[1] is None:
        raise ValueError("interval=anytime needs the range of the metric: its least and greatest value.")
    low, span = bounds[0], bounds[1] - bounds[0]
    x = (np.asarray(scores, float) - low) / span
    gone = np.isnan(x)
    value = float(x[~gone].mean()) if (~gone).any() else math.nan
    lower = _betting(np.where(gone, 0.0, x), size, alpha, grid)[0]
    upper = _betting(np.where(gone, 1.0, x), size, alpha, grid)[1]
    return Estimate(low + span * value, low + span * lower, low + span * upper, len(x), int(gone.sum()))


def _betting(x: Floats, size: int, alpha: float, grid: int) -> tuple[float, float]:
    n = len(x)
    if n == 0:
        return 0.0, 1.0
    if n >= size:
        return float(x.mean()), float(x.mean())
    m = np.linspace(0, 1, grid)[None, :]
    done, before = np.arange(n), np.concatenate([[0.0], np.cumsum(x)[:-1]])
    rest = (size * m - before[:, None]) / (size - done)[:, None]  # the mean of what is left, if m is that of all
    centre = (0.5 + before) / (1 + done)
    spread = (0.25 + np.concatenate([[0.0], np.cumsum((x - centre) ** 2)[:-1]])) / (1 + done)
    bet = np.sqrt(2 * math.log(2 / alpha) / (spread * (done + 1) * np.log(done + 2)))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.log1p(np.minimum(bet, 0.5 / np.maximum(rest, 1e-12)) * (x[:, None] - rest))
        down = np.log1p(-np.minimum(bet, 0.5 / np.maximum(1 - rest, 1e-12)) * (x[:, None] - rest))
    won = np.maximum(np.cumsum(up, 0), np.cumsum(down, 0)) - math.log(2)
    impossible = (rest < -1e-12) | (rest > 1 + 1e-12)
    refused = (np.where(impossible, np.inf, won) >= -math.log(alpha)).any(0)
    step, kept = 1 / (grid - 1), m[0][~refused]
    least, most = float(x.sum() / size), float((x.sum() + size - n) / size)
    if not len(kept):
        return least, most
    # The grid may have passed over values up to its next point.
    return max(least, float(kept.min()) - step), min(most, float(kept.max()) + step)
