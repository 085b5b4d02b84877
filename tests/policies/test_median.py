from __future__ import annotations

from rfflow.policies import Median
from rfflow.policies.simulation import simulate
from tests.policies.curves import NAN, curves


def test_a_run_that_is_clearly_weak_is_stopped_and_close_ones_go_on() -> None:
    falling = [4, 3, 2, 1]
    close = [4.1, 3.1, 2.1, 1.1]
    outcome = simulate(curves(falling, close, close, [9, 8, 7, 6]), Median())
    assert [(run.state, run.chunk) for run in outcome.scene.runs] == [("completed", 4)] * 3 + [("stopped", 2)]


def test_every_run_gets_its_first_chunks() -> None:
    outcome = simulate(curves([1] * 4, [1] * 4, [9] * 4), Median(min_chunks=3))
    assert [run.chunk for run in outcome.scene.runs] == [4, 4, 3]


def test_two_runs_are_too_few_to_judge_and_a_diverged_one_is_stopped() -> None:
    assert simulate(curves([1] * 4, [9] * 4), Median()).decisions == []
    assert simulate(curves([1] * 4, [1] * 4, [NAN] * 4), Median()).scene.runs[2].state == "stopped"
