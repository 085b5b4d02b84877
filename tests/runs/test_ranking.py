"""Evaluations are ranked by the questions that both have had; an early estimate never beats a value that is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import DatasetSpec, EvalSpec, EvaluationSpec, ExperimentSpec, ModelSpec, Objective
from rfflow.control.ops import Clone, Stop
from rfflow.control.selection import Ranked, select
from rfflow.results.compare import Entry, _place
from rfflow.runs import run as runs
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.ranking import Standing, best_first
from rfflow.tracking.layout import ranking

MAXIMIZE = Objective("eval_m", "maximize")


def evaluation(number: int, *values: float | None, rough: bool = False) -> Standing:
    past = tuple((10 * (place + 1), {} if v is None else {"eval_m": v}) for place, v in enumerate(values)) or ((0, {}),)
    return Standing(number, past[-1][1], past, rough)


def test_one_that_has_answered_fewer_is_compared_on_those() -> None:
    ahead = evaluation(0, 0.5, 0.9)
    assert best_first([ahead, evaluation(1, 0.6)], MAXIMIZE) == [1, 0], "the second shard is easier for both"
    assert best_first([ahead, evaluation(1, 0.4)], MAXIMIZE) == [0, 1]
    assert best_first([ahead, evaluation(1, 0.6)], Objective("eval_m")) == [0, 1]


def test_an_early_estimate_of_one_that_was_stopped_never_beats_a_value() -> None:
    runs = [evaluation(0, 1.0, rough=True), evaluation(1, 0.2, 0.3), evaluation(2, 0.1, 0.4)]
    assert best_first(runs, MAXIMIZE) == [2, 1, 0]


def test_what_has_no_value_comes_last_and_training_stands_as_it_is() -> None:
    runs = [evaluation(0), evaluation(1, None), evaluation(2, float("nan")), evaluation(3, 0.1)]
    assert best_first(runs, MAXIMIZE)[0] == 3
    trained = [Standing(0, {"eval_loss": 2.0}), Standing(1, {}), Standing(2, {"eval_loss": 1.0})]
    assert best_first(trained, Objective()) == [2, 0, 1]


def test_the_table_and_comparisons_rank_real_runs_so(tmp_path: Path) -> None:
    experiment = Experiment(ExperimentSpec("e", objective=MAXIMIZE), ExperimentPaths(tmp_path))
    model, dataset = ModelSpec("m"), DatasetSpec(path="q.jsonl")
    for number, values in enumerate([(0.9,), (0.2, 0.5), (0.3, 0.4)]):
        spec = EvalSpec(chunks=2, model=model, dataset=dataset, evaluation=EvaluationSpec(None))
        run = runs.Run(number, spec, (f"prompt.fewshot={number}",), experiment.paths.run(number))
        run.plan, run.state = ChunkPlan((10, 20), 2), runs.RunState.COMPLETED if number else runs.RunState.STOPPED
        for chunk, value in enumerate(values):
            run.step = 10 * (chunk + 1)
            run.reach(run.step, {"eval_m": value})
            run.chunks.append(ChunkResult(number, chunk, run.step, dict(run.metrics), 0.0, 1.0))
        experiment.runs.append(run)
    assert [run.number for run in experiment.ranked()] == [1, 2, 0]
    lines = [line.split() for line in ranking(experiment, 100).plain.splitlines() if "fewshot=" in line]
    assert [line[1] if line[0] == "★" else line[0] for line in lines] == ["1", "2", "0"] and lines[0][0] == "★"
    entries = [Entry("e", None, run, ()) for run in experiment.runs]  # type: ignore[arg-type]
    assert [each.run.number for each in sorted(entries, key=lambda each: _place(each, MAXIMIZE))] == [1, 2, 0]


@dataclass
class Run:
    standing: Standing
    value: str = "completed"
    state: Any = field(init=False)

    def __post_init__(self) -> None:
        self.number, self.metrics, self.state = self.standing.number, self.standing.metrics, self


def test_ops_choose_by_the_same_order() -> None:
    runs = [Run(evaluation(0, 0.9, rough=True), "stopped"), Run(evaluation(1, 0.2, 0.5)), Run(evaluation(2, 0.1, 0.4))]
    assert select(Clone(Ranked("best", 1)), runs, MAXIMIZE) == (1,)
    live = [Run(evaluation(0, 0.3), "running"), Run(evaluation(1, 0.2, 0.5), "running")]
    assert select(Stop(Ranked("worst", 1)), live, MAXIMIZE) == (1,)
    assert select(Stop(Ranked("best", 1)), live, MAXIMIZE) == (0,)


def test_a_tie_goes_by_number() -> None:
    assert best_first([evaluation(1, 0.5), evaluation(0, 0.5)], MAXIMIZE) == [0, 1]
    assert best_first([evaluation(1, 0.5, 0.6), evaluation(0, 0.5)], MAXIMIZE) == pytest.approx([1, 0])
