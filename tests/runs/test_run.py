"""Chunk boundaries, states, and the ranking of runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfflow.config.spec import ExperimentSpec, Objective
from rfflow.runs.chunks import ChunkPlan, ChunkResult, chunk_ends
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import IllegalTransition, Run, RunState
from tests.support.tiny import run_spec


def test_an_epoch_is_cut_into_equal_chunks() -> None:
    assert chunk_ends(steps_per_epoch=12, chunks=4, total_steps=12) == (3, 6, 9, 12)
    assert chunk_ends(steps_per_epoch=10, chunks=4, total_steps=10) == (3, 5, 8, 10)
    assert chunk_ends(steps_per_epoch=4, chunks=2, total_steps=10) == (2, 4, 6, 8, 10)


def test_the_last_step_is_a_boundary_wherever_max_steps_puts_it() -> None:
    assert chunk_ends(steps_per_epoch=12, chunks=4, total_steps=7) == (3, 6, 7)


def test_more_chunks_than_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="5 chunks do not fit into 4 steps"):
        chunk_ends(steps_per_epoch=4, chunks=5, total_steps=4)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 3))
def test_each_epoch_has_its_chunks_and_ends_with_one(steps: int, chunks: int, epochs: int) -> None:
    if chunks > steps:
        return
    ends = chunk_ends(steps, chunks, steps * epochs)
    assert len(ends) == chunks * epochs and {steps * epoch for epoch in range(1, epochs + 1)} <= set(ends)
    sizes = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    assert max(sizes) - min(sizes) <= 1


def make_run(number: int = 0, **metrics: float) -> Run:
    run = Run(number, run_spec("model", "data"), (), ExperimentPaths(Path("x")).run(number))
    run.metrics.update(metrics)
    return run


def test_an_illegal_transition_says_what_is_allowed() -> None:
    run = make_run()
    with pytest.raises(
        IllegalTransition, match=r"Run 0 is queued and cannot become completed. Allowed: deleted, failed"
    ):
        run.move_to(RunState.COMPLETED)
    assert run.state is RunState.QUEUED


def test_runs_are_ranked_by_the_objective_and_nan_comes_last() -> None:
    runs = [make_run(0, eval_loss=2.0), make_run(1, eval_loss=math.nan), make_run(2, eval_loss=1.0), make_run(3)]
    experiment = Experiment(ExperimentSpec(name="x"), ExperimentPaths(Path("x")), runs)
    assert [run.number for run in experiment.ranked()] == [2, 0, 1, 3]
    upward = Experiment(ExperimentSpec(name="x", objective=Objective("eval_loss", "maximize")), experiment.paths, runs)
    assert [run.number for run in upward.ranked()] == [0, 2, 1, 3]


def test_the_training_loss_stands_in_where_nothing_is_evaluated() -> None:
    assert Objective().value({"loss": 1.5}) == 1.5
    assert Objective("eval_accuracy", "maximize").value({"loss": 1.5}) is None


def test_the_time_left_counts_the_devices(tmp_path: Path) -> None:
    """Several share what is left; a run that is behind the others has its own left all the same."""
    experiment = Experiment(ExperimentSpec("test"), ExperimentPaths(tmp_path), slots=2)
    for number, done in enumerate((1, 1, 3)):
        run = Run(number, run_spec(Path("m"), Path("d")), (), experiment.paths.run(number))
        run.plan, run.state = ChunkPlan((10, 20, 30, 40), 4), RunState.RUNNING
        run.chunks = [ChunkResult(number, n, 10 * (n + 1), {}, 100.0 * n, 100.0 * n + 10) for n in range(done)]
        run.step = run.chunks[-1].step
        experiment.runs.append(run)
    assert experiment.seconds_left() == pytest.approx((30 + 30 + 10) / 2)
    experiment.given_up = 1
    assert experiment.seconds_left() == pytest.approx(30 + 30 + 10)
    del experiment.runs[1:]
    assert experiment.seconds_left() == pytest.approx(30)
