"""Intervals that hold what they say: hand-computed cases, and coverage by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import cover_all, cover_one, looks_of, populations
from rfflow.evals import statistics as st


def test_one_look_needs_the_normal_quantile() -> None:
    assert st.critical((50,), 100, 0.05) == pytest.approx(1.959964, abs=1e-4)
    assert st.critical((50,), 100, 0.05, 1) == pytest.approx(1.644854, abs=1e-4)


def test_more_looks_and_more_candidates_need_more() -> None:
    one, eight = st.critical((50,), 100, 0.05), st.critical(looks_of(100), 100, 0.05)
    assert one < eight < stats.norm.isf(0.05 / 2 / 7)  # less than if the looks had nothing to do with each other
    assert eight < st.critical(looks_of(100), 100, 0.05 / 64)
    assert st.critical((100,), 100, 0.05) == 0


def test_a_mean_by_hand() -> None:
    """Without a range: Student's t and the finite-population correction, as in any book on sampling."""
    x = [1.0, 2.0, 4.0, 5.0]
    found = st.mean(x, 10, 1.96, (None, None))
    half = stats.t.isf(stats.norm.sf(1.96), 3) * math.sqrt(np.var(x, ddof=1) / 4 * (10 - 4) / (10 - 1))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half))


def test_the_end_is_exact() -> None:
    assert st.mean([1, 0, 1, 1], 4, 2.5) == st.Estimate(0.75, 0.75, 0.75, 4)
    assert st.ratio([1, 2], [4, 2], 2, 2.5) == st.Estimate(0.5, 0.5, 0.5, 2)
    assert st.anytime([1, 0, 1, 1], 4, 0.05) == st.Estimate(0.75, 0.75, 0.75, 4)
    assert st.proportion(3, 4, 4, 0.05) == (0.75, 0.75)
    assert st.total([1, 2], 2, 2.5).value == 3


def test_a_run_of_right_answers_is_not_certain() -> None:
    found = st.mean(np.ones(20), 100, 1.96)
    assert found.high == 1 and 0.7 < found.low < 0.97


def test_nothing_seen_is_everything_possible() -> None:
    for found in (st.mean([], 10, 2.0), st.mean([math.nan], 10, 2.0)):
        assert math.isnan(found.value) and (found.low, found.high) == (0, 1)


def test_what_is_missing_widens_and_is_neither_wrong_nor_dropped() -> None:
    whole = st.mean([1, 0, 1, math.nan], 4, 2.5)
    assert whole == st.Estimate(2 / 3, 0.5, 0.75, 4, missing=1)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    theirs = (rng.random(200) < 0.6).astype(float)
    ours = np.where(rng.random(200) < 0.1, 1.0, theirs)
    found = st.difference(ours, theirs, 1000, 2.0)
    assert found.low > 0
    assert st.mean(ours, 1000, 2.0).low < st.mean(theirs, 1000, 2.0).high  # which say nothing


def test_a_missing_answer_speaks_against_no_one() -> None:
    ours, theirs = np.r_[np.zeros(50), np.full(50, np.nan)], np.r_[np.zeros(50), np.ones(50)]
    found = st.difference(ours, theirs, 200, 2.0)
    assert found.high > 0 and found.missing == 50


def test_a_difference_of_ratios_linearises() -> None:
    x, y, b = np.array([1.0, 2, 0]), np.array([0.0, 1, 0]), np.array([1.0, 2, 1])
    found = st.difference(x, y, 3, 2.0, denominators=(b, b))
    assert found.value == pytest.approx(0.5) and found.low == found.high


def test_the_reading_beyond_the_set_keeps_its_width() -> None:
    x = np.r_[np.ones(70), np.zeros(30)]
    found = st.beyond(x, np.ones(100), 0.05)
    assert 0.58 < found.low < 0.63 and 0.77 < found.high < 0.81
    gone = st.beyond(np.where(np.arange(100) < 10, np.nan, x), np.ones(100), 0.05)
    assert gone.low < found.low - 0.05 and gone.high == pytest.approx(found.high), "as if the ten were wrong, and right"
    apart = st.difference(x, 1 - x, math.inf, st.one_look(0.05))
    assert 0 < apart.low < 0.4 == apart.value < apart.high


def test_exact_limits_are_those_of_the_hypergeometric_distribution() -> None:
    low, high = st.proportion(0, 10, 100, 0.05)
    assert low == 0
    most = round(high * 100)
    assert stats.hypergeom.cdf(0, 100, most, 10) > 0.025 >= stats.hypergeom.cdf(0, 100, most + 1, 10)


@pytest.mark.parametrize("name", ["binary .7", "binary .98", "F1", "micro-F1", "paired difference"])
def test_coverage_of_one_candidate_at_all_looks(name: str) -> None:
    a, b, bounds = populations(104, np.random.default_rng(104))[name]
    assert cover_one(a, b, bounds, repeats=500, seed=1) >= 0.925  # .94 less what 500 repetitions may be off by


def test_coverage_of_all_candidates_together() -> None:
    assert cover_all(104, candidates=8, repeats=300, seed=2) >= 0.94


def test_anytime_limits_hold_after_every_item() -> None:
    rng = np.random.default_rng(3)
    x, ever_wrong = np.r_[np.ones(70), np.zeros(30)], 0
    for _ in range(40):
        order = rng.permutation(x)
        found = [st.anytime(order[:n], 100, 0.05, grid=201) for n in range(5, 100, 5)]
        ever_wrong += any(not f.low <= 0.7 <= f.high for f in found)
    assert ever_wrong <= 2
    assert found[-1].high - found[-1].low < 0.12
