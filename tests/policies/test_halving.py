from __future__ import annotations

import random
from math import ceil

import pytest

from rfflow.control.ops import Clone, Delete, Stop
from rfflow.control.selection import Numbers
from rfflow.errors import ConfigError
from rfflow.policies import Halving, Hyperband
from rfflow.policies.halving import bracket_pattern
from rfflow.policies.simulation import simulate
from tests.policies.curves import NAN, curves, random_curves


@pytest.mark.parametrize("runs, eta", [(16, 2), (9, 3), (10, 2), (7, 3), (2, 4)])
def test_the_best_ceil_n_over_eta_go_on_whatever_the_order(runs: int, eta: int) -> None:
    losses = [[1 + run / 100] * (eta**2) for run in range(runs)]
    random.Random(runs).shuffle(losses)
    outcome = simulate(curves(*losses), Halving(eta=eta))
    first, second = ceil(runs / eta), ceil(ceil(runs / eta) / eta)
    by_loss = sorted(range(runs), key=lambda run: losses[run][0])
    done = {run.number: run.chunk for run in outcome.scene.runs}
    assert [done[run] for run in by_loss] == ([eta**2] * second + [eta] * (first - second) + [1] * (runs - first))
    assert outcome.spent == runs + first * (eta - 1) + second * (eta**2 - eta)


def test_runs_are_ranked_by_what_they_had_at_the_rung() -> None:
    outcome = simulate(curves([3, 1, 1, 1], [2, 2, 2, 2]), Halving())
    assert outcome.order == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert outcome.decisions[0].why == "place 2 of 2 after chunk 1; 1 go on"


def test_a_run_that_diverged_does_not_go_on_even_where_there_is_room() -> None:
    outcome = simulate(curves([NAN] * 4, [2] * 4, [NAN] * 4, [NAN] * 4), Halving())
    assert [run.state for run in outcome.scene.runs] == ["stopped", "completed", "stopped", "stopped"]


def test_the_next_best_is_revived_when_the_chosen_one_fails() -> None:
    story = curves([1] * 4, [2] * 4, [3] * 4, r0=2)
    with_revival = simulate(story, Halving())
    assert [run.state for run in with_revival.scene.runs] == ["failed", "completed", "stopped"]
    without = simulate(story, Halving(revive=False))
    assert [run.state for run in without.scene.runs] == ["failed", "stopped", "stopped"]


def test_the_next_best_is_revived_when_a_person_takes_the_chosen_one_away() -> None:
    story = curves([1] * 4, [2] * 4, [3] * 4, [4] * 4)
    for op in (Stop(Numbers((0,))), Delete(Numbers((0,)))):
        outcome = simulate(story, Halving(min_chunks=2), person={9: [op]})
        assert [run.state for run in outcome.scene.runs][1:] == ["completed", "completed", "stopped"]


def test_a_clone_is_judged_when_it_arrives_and_holds_nobody_up() -> None:
    story = curves([1] * 4, [2] * 4, [3] * 4, [4] * 4)
    clone = Clone(Numbers((3,)), ("lr=1",))
    outcome = simulate(story, Halving(), person={5: [clone]})
    assert [run.state for run in outcome.scene.runs] == ["completed", "stopped", "stopped", "stopped", "stopped"]
    assert outcome.scene.runs[4].chunk == 1


def test_hyperband_shares_runs_out_over_brackets() -> None:
    pattern = bracket_pattern(3, 9)
    assert {bracket: pattern.count(bracket) for bracket in (0, 1, 2)} == {0: 9, 1: 5, 2: 3}
    outcome = simulate(random_curves(1, 17, 9, trouble=False), Hyperband(eta=3))
    completed = [run.number for run in outcome.scene.runs if run.state == "completed"]
    assert sorted(pattern[run] for run in completed) == [0, 1, 1, 2, 2, 2]
    assert outcome.spent < 17 * 9


def test_hyperband_with_one_chunk_stops_nobody() -> None:
    assert simulate(random_curves(1, 5, 1, trouble=False), Hyperband()).decisions == []


@pytest.mark.parametrize("settings", [{"eta": 1}, {"eta": 2.5}, {"min_chunks": 0}, {"min_chunks": True}])
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ConfigError, match="Allowed: a whole number"):
        Halving(**settings)
