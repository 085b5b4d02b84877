"""The benchmark of early stopping runs, and asks policies at all the moments that matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import early_stopping_demo as demo
from benchmarks.early_stopping import FAMILIES, POLICIES, Rounds, draw_curves, run_all, tables
from benchmarks.learning_curves import add, collect
from rfflow.policies.simulation import simulate
from tests.policies.test_replay import record_experiment


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


def test_a_bank_of_real_curves_is_collected_part_by_part(tmp_path: Path) -> None:
    """A part that is made again takes the place of what was there of it."""
    root, bank = record_experiment(tmp_path / "experiment", runs=2), tmp_path / "bank.json"
    curves = collect(1, root)
    assert [(curve["run"], curve["state"], curve["loss"]) for curve in curves] == [
        (run, "completed", [1.0] * 4) for run in range(2)
    ]
    took = {"wall_s": 1.0, "cpu_s": 1.0}
    for part in (1, 0, 1):
        add(bank, "grid", part, took, [{**curve, "part": part, "eval_loss": curve["loss"]} for curve in curves])
    add(bank, "live", 0, took, [])
    read = demo.read_bank(bank)
    assert [(one["part"], one["run"], curve.number) for one, curve in read] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 3),
    ]
    assert read[0][1].metrics == ({"loss": 1.0, "eval_loss": 1.0},) * 4


@pytest.mark.parametrize("name", demo.BANKS)
def test_a_recorded_bank_is_steered_by_every_policy(name: str) -> None:
    """What the page says of real models can be printed again, and the seed decides alone."""
    bank = [curve for _, curve in demo.read_bank(demo.CURVES / name)]
    figures = demo.run_all(bank, (16,), seeds=2)
    assert figures == demo.run_all(bank, (16,), seeds=2)
    assert figures[16, "none (grid)"][0].regret == 0
    assert {cell.spent for cell in figures[16, "halving eta=2"]} == {40 / 128}
    assert demo.tables(figures, (16,)).count("| 16 |") == 3 * len(demo.POLICIES)


def test_what_was_trained_under_halving_is_what_its_replay_foresaw() -> None:
    """Real runs, once to the end and once under the policy: the same choices, the same losses to the last digit."""
    said = demo.live(demo.CURVES / "tiny.json")
    assert "64 of 64 runs ended in the state and after the chunk that the replay foresees" in said
    assert "all evaluation losses equal those of the grid" in said
