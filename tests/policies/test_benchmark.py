"""The benchmark of early stopping runs, and asks policies at all the moments that matter."""

from __future__ import annotations

import pytest

from benchmarks.early_stopping import FAMILIES, POLICIES, Rounds, draw_curves, run_all, tables
from rfflow.policies.simulation import simulate


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_once_a_round_is_enough(family: str) -> None:
    _, curves = draw_curves(family, 12, 0)
    for name, make in POLICIES.items():
        assert simulate(curves, Rounds(make())).order == simulate(curves, make()).order, name


def test_the_tables_have_a_row_for_every_policy_and_size() -> None:
    text = tables(run_all((4,), seeds=2), (4,))
    assert text.count("| 4 |") == 2 * len(FAMILIES) * len(POLICIES)
    assert "none (grid) | 4 | 100 %" in text


def test_a_seed_draws_the_same_curves_again() -> None:
    assert repr(draw_curves("mixed", 5, 3)) == repr(draw_curves("mixed", 5, 3)) != repr(draw_curves("mixed", 5, 4))
