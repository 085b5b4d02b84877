"""How often the intervals of an evaluation hold, at all looks: of one candidate and of all; beside the normal ones.

    python benchmarks/coverage.py [repeats]             # a few minutes with 1000; prints the tables of the README
    python benchmarks/coverage.py [repeats] others      # only those of the formulas of others

Populations are made with fixed seeds and permuted anew in every repetition; an interval counts as holding only if it
does at each of the eight looks. The normal ones are 1.96 standard errors with a finite-population correction. Those of
others are the three that RapidFire AI offers for its running metrics, as its source has them (`normal`, its default,
`wilson`, `hoeffding` in evals/metrics/online_strategies.py); here they are written anew.
"""

from __future__ import annotations

import sys

import numpy as np

from rfflow.evals import statistics as st

LOOKS = 8
UNIT = st.UNIT
ALPHA = 0.05


def looks_of(size: int, looks: int = LOOKS) -> tuple[int, ...]:
    return tuple((k + 1) * size // looks for k in range(looks))


def populations(size: int, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray, st.Range]]:
    """Numerators, denominators and range of the values of an item, by name."""
    ones = np.ones(size)
    found: dict[str, tuple[np.ndarray, np.ndarray, st.Range]] = {}
    for p in (0.05, 0.5, 0.7, 0.98):
        x = np.zeros(size)
        x[: max(1, round(p * size))] = 1
        found[f"binary {p:.2g}".replace("0.", ".")] = x, ones, st.UNIT
    u = rng.random(size)
    found["F1"] = np.where(u < 0.35, 0, np.where(u < 0.6, 1, rng.beta(2, 3, size))), ones, st.UNIT
    found["F1 near ceiling"] = np.where(rng.random(size) < 0.95, 1, rng.random(size)), ones, st.UNIT
    judged = rng.choice([1.0, 2, 3, 4, 5], size, p=[0.05, 0.1, 0.2, 0.35, 0.3])
    found["judge 1-5"] = judged, ones, (1.0, 5.0)
    claims, skill = rng.integers(1, 6, size), rng.beta(4, 2, size)
    found["precision"] = rng.binomial(claims, skill).astype(float), claims.astype(float), st.UNIT
    hits = rng.binomial(3, skill).astype(float)
    found["micro-F1"] = 2 * hits, 2 * hits + rng.binomial(2, 0.3, size) + 3 - hits, st.UNIT
    x = (rng.random(size) < 0.7).astype(float)
    y = np.where(rng.random(size) < 0.6, x, rng.random(size) < 0.72)
    found["paired difference"] = x - y, ones, (-1.0, 1.0)
    found["tokens (unbounded)"] = rng.lognormal(5, 1, size), ones, (None, None)
    return found


def cover_one(a: np.ndarray, b: np.ndarray, bounds: st.Range, repeats: int, seed: int, plain: bool = False) -> float:
    """Return the share of repetitions in which the interval holds the truth at every look.

    Args:
        a, b: numerators and denominators of the population.
        bounds: the range of an item's value.
        repeats: permutations.
        seed: of the permutations.
        plain: use 1.96 standard errors at each look instead.
    """
    size, truth = len(a), a.sum() / b.sum()
    c = 1.96 if plain else st.critical(looks_of(size), size, ALPHA)
    orders = np.argsort(np.random.default_rng(seed).random((repeats, size)), 1)
    holds = np.ones(repeats, bool)
    for n in looks_of(size):
        seen = orders[:, :n]
        low, high = _normal(a[seen], b[seen], size, c) if plain else st.limits(a[seen], b[seen], size, c, bounds)[1:]
        holds &= (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return float(holds.mean())


def _normal(a: np.ndarray, b: np.ndarray, size: int, c: float) -> tuple[np.ndarray, np.ndarray]:
    n, value = a.shape[-1], a.sum(-1) / b.sum(-1)
    spread = (a - value[..., None] * b).std(-1, ddof=1) / b.mean(-1)
    half = c * spread / np.sqrt(n) * np.sqrt(max(0, size - n) / (size - 1))
    return value - half, value + half


def matrix(candidates: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Right and wrong answers of candidates whose questions are equally hard for all (item response theory)."""
    ability, difficulty = rng.normal(0.6, 0.35, candidates), rng.normal(0, 1.5, size)
    chance = 1 / (1 + np.exp(difficulty[None] - ability[:, None]))
    return (rng.random((candidates, size)) < chance).astype(float)


def cover_all(size: int, candidates: int, repeats: int, seed: int, plain: bool = False) -> float:
    """Return the share of repetitions in which all intervals of all candidates hold at every look."""
    rng = np.random.default_rng(seed)
    x = matrix(candidates, size, rng)
    truth, ones = x.mean(1), np.ones(x.shape)
    c = 1.96 if plain else st.critical(looks_of(size), size, ALPHA / candidates)
    held = 0
    for _ in range(repeats):
        order, good = rng.permutation(size), True
        for n in looks_of(size)[:-1]:
            a, b = x[:, order[:n]], ones[:, :n]
            low, high = _normal(a, b, size, c) if plain else st.limits(a, b, size, c)[1:]
            if np.any(low > truth + 1e-9) or np.any(high < truth - 1e-9):
                good = False
                break
        held += good
    return held / repeats


# --- the formulas of others -------------------------------------------------------------------------------------------

OTHERS = ("normal", "wilson", "hoeffding")


def limits_of_others(
    name: str, value: np.ndarray, n: int, size: int, bounds: st.Range
) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits that RapidFire shows beside a running mean or ratio.

    They are made of the value alone: what is from 0 to 1 counts as right or wrong, of all else the variance is
    that of an even spread over its range. At either end of the range there is no width. All have a finite-population
    correction.

    Args:
        name: of the formula.
        value: what was found, of any shape.
        n: the items seen, of ``size``.
        size: N.
        bounds: the range of an item's value.
    """
    low, high = bounds
    assert low is not None and high is not None
    z, left = 1.959964, np.sqrt((size - n) / (size - 1))
    centre = value
    if name == "hoeffding":
        half = np.full_like(value, (high - low) * np.sqrt(np.log(2 / ALPHA) / (2 * n)) * left)
    elif name == "wilson" and (low, high) == (0, 1):
        m = n / left**2 if left else np.inf
        centre = (value + z**2 / (2 * m)) / (1 + z**2 / m)
        half = z * np.sqrt(value * (1 - value) / m + z**2 / (4 * m**2)) / (1 + z**2 / m)
    else:
        variance = value * (1 - value) if (low, high) == (0, 1) else np.full_like(value, (high - low) ** 2 / 12)
        half = z * np.sqrt(np.maximum(variance, 0) / n) * left
    at_end = (value <= low) | (value >= high)
    return np.where(at_end, value, np.maximum(low, centre - half)), np.where(
        at_end, value, np.minimum(high, centre + half)
    )


def others_cover_one(name: str, a: np.ndarray, b: np.ndarray, bounds: st.Range, repeats: int, seed: int) -> float:
    """Return the same as :func:`cover_one` of a formula of others, on the same permutations."""
    size, truth = len(a), a.sum() / b.sum()
    orders = np.argsort(np.random.default_rng(seed).random((repeats, size)), 1)
    sums, counts = a[orders].cumsum(1), b[orders].cumsum(1)
    holds = np.ones(repeats, bool)
    for n in looks_of(size):
        low, high = limits_of_others(name, sums[:, n - 1] / counts[:, n - 1], n, size, bounds)
        holds &= (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return float(holds.mean())


def others_cover_all(name: str, size: int, candidates: int, repeats: int, seed: int) -> float:
    """Return the same as :func:`cover_all` of a formula of others."""
    rng = np.random.default_rng(seed)
    x = matrix(candidates, size, rng)
    truth, ends, held = x.mean(1), np.array(looks_of(size)[:-1]), 0
    for _ in range(repeats):
        values = x[:, rng.permutation(size)].cumsum(1)[:, ends - 1] / ends
        good = True
        for place, n in enumerate(ends):
            low, high = limits_of_others(name, values[:, place], int(n), size, st.UNIT)
            good &= bool(np.all(low <= truth + 1e-9) and np.all(truth <= high + 1e-9))
        held += good
    return held / repeats


def failures_cover(size: int, repeats: int, rate: float = 0.06) -> tuple[float, list[float]]:
    """Return how often the limits hold of what .7 of all questions are answered rightly, where some have no answer.

    Ours take a missing score for what it is; others count it as wrong.
    """
    rng, looks = np.random.default_rng(4), looks_of(size)
    right = (np.arange(size) < round(0.7 * size)).astype(float)
    ours, others, c = 0, [0] * len(OTHERS), st.critical(looks, size, ALPHA)
    for _ in range(repeats):
        order = rng.permutation(size)
        gone = rng.random(size) < rate
        seen, counted = np.where(gone, np.nan, right)[order], np.where(gone, 0.0, right)[order]
        found = [st.mean(seen[:n], size, c) for n in looks]
        ours += all(each.low - 1e-9 <= 0.7 <= each.high + 1e-9 for each in found)
        for place, name in enumerate(OTHERS):
            ends = [limits_of_others(name, counted[:n].mean(keepdims=True), n, size, st.UNIT) for n in looks]
            others[place] += all(low[0] - 1e-9 <= 0.7 <= high[0] + 1e-9 for low, high in ends)
    return ours / repeats, [each / repeats for each in others]


def main_of_others(repeats: int) -> None:
    sizes = (104, 500, 2000)
    said = " / ".join(OTHERS)
    print("| one candidate, all of 8 looks | " + " | ".join(f"N={n}: {said}" for n in sizes) + " |\n|---|---|---|---|")
    made = {size: populations(size, np.random.default_rng(size)) for size in sizes}
    for name, (_, _, (low, _)) in made[104].items():
        if low is None or low < 0:
            continue  # they are not offered for differences, nor without a range
        cells = []
        for size in sizes:
            a, b, bounds = made[size][name]
            cells.append(" / ".join(f"{others_cover_one(each, a, b, bounds, repeats, 1):.3f}" for each in OTHERS))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| candidates, all together | " + " | ".join(f"N={n}: {said}" for n in sizes) + " |\n|---|---|---|---|")
    for candidates in (1, 8, 16, 64):
        cells = [
            " / ".join(f"{others_cover_all(each, size, candidates, repeats, 2):.3f}" for each in OTHERS)
            for size in sizes
        ]
        print(f"| {candidates} | " + " | ".join(cells) + " |", flush=True)
    ours, others = failures_cover(500, repeats)
    print(f"\n6 % without an answer, N=500: ours {ours:.3f}, {said}: " + " / ".join(f"{each:.3f}" for each in others))


def main(repeats: int) -> None:
    print("| one candidate, all of 8 looks | " + " | ".join(f"N={n}: ours / normal" for n in (104, 500, 2000)) + " |")
    print("|---|---|---|---|")
    made = {size: populations(size, np.random.default_rng(size)) for size in (104, 500, 2000)}
    for name in made[104]:
        cells = []
        for size in made:
            a, b, bounds = made[size][name]
            ours, normal = (cover_one(a, b, bounds, repeats, 1, plain) for plain in (False, True))
            cells.append(f"{ours:.3f} / {normal:.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(
        "\n| candidates, all together | " + " | ".join(f"N={n}: ours / normal" for n in made) + " |\n|---|---|---|---|"
    )
    for candidates in (1, 8, 16, 64):
        cells = [
            f"{cover_all(n, candidates, repeats, 2):.3f} / {cover_all(n, candidates, repeats, 2, True):.3f}"
            for n in made
        ]
        print(f"| {candidates} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    if sys.argv[2:] != ["others"]:
        main(repeats)
        print()
    main_of_others(repeats)
