"""A misspelt objective is noticed before training where it can be, and else as soon as it can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rfflow.config.spec import ControlSpec, ExperimentSpec, Objective
from rfflow.engine.engine import Engine
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.errors import ConfigError
from rfflow.runs.paths import ExperimentPaths
from tests.support.tiny import run_spec


@dataclass(frozen=True)
class Known:
    """A run that logs these metrics."""

    names: frozenset[str] = field(default_factory=lambda: frozenset({"loss", "entropy"}))
    evaluates: bool = False
    is_complete: bool = True
    evaluation_sets: tuple[str, ...] = ()

    @property
    def offered(self) -> frozenset[str]:
        """All of them but one of another configuration."""
        return self.names - {"aux_loss", "eval_aux_loss"}

    def may_have(self, metric: str) -> bool:
        """Whether it may."""
        return metric in self.names or not self.is_complete


EVALUATED = Known(frozenset({"loss", "eval_loss", "eval_aux_loss", "eval_rouge_l"}), evaluates=True)


def metrics_check(metric: str, *runs: Known | None, searched: Sequence[str] = ()) -> MetricsCheck:
    watch = MetricsCheck(Objective(metric), [Objective(each) for each in searched])
    for number, known in enumerate(runs):
        watch.note(number, known)
    return watch


@pytest.mark.parametrize(
    ("metric", "runs", "said"),
    [
        ("entrpy", [Known()], "is 'entrpy', which no run will log. Did you mean 'entropy'. There are: entropy, loss."),
        ("eval_entropy", [Known()], "and nothing is evaluated. Give .* Without evaluation there is 'entropy'."),
        ("eval_blue", [Known()], "and nothing is evaluated. Give .* leave evaluate=true.$"),
        ("eval_bleu", [EVALUATED], "a score of generated answers, .* Say evaluation.generate.samples=16 "),
        ("eval_los", [EVALUATED], r"Did you mean 'eval_loss' or 'eval_rouge_l'\? There are: eval_loss, eval_rouge_l\."),
        ("eval_rouge", [Known(), EVALUATED], "Did you mean 'eval_rouge_l'.* There are: eval_loss, eval_rouge_l."),
    ],
)
def test_a_metric_that_no_run_will_log_is_refused(metric: str, runs: list[Known], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        metrics_check(metric, *runs).check()


def test_what_a_search_weighs_and_no_run_will_log_is_refused() -> None:
    """Whatever ranks the runs."""
    metrics_check("loss", Known(), searched=["loss", "entropy", "eval_loss"]).check()
    metrics_check("loss", Known(is_complete=False), searched=["mine"]).check()
    with pytest.raises(ConfigError, match=r"^search\.objectives\[1\]\.metric is 'entrpy', .* Did you mean 'entropy'"):
        metrics_check("loss", Known(), searched=["loss", "entrpy"]).check()
    with pytest.raises(ConfigError, match=r"^search\.objectives\[0\]\.metric is 'eval_bleu', a score of generated"):
        metrics_check("loss", EVALUATED, searched=["eval_bleu"]).check()


def test_what_a_search_weighs_is_refused_before_anything_trains(
    tmp_path: Path, tiny_model: Path, tiny_data: Path
) -> None:
    searched = (Objective("loss"), Objective("mean_token_acuracy", "maximize"))
    spec = ExperimentSpec("tiny", searched=searched, accelerator="cpu", control=ControlSpec(enabled=False))
    engine = Engine(spec, ExperimentPaths(tmp_path))
    engine.add(run_spec(tiny_model, tiny_data), 0)
    with pytest.raises(ConfigError, match=r"objectives\[1\].* Did you mean 'mean_token_accuracy'"):
        engine.run()
    engine.close()
    assert engine.experiment.run(0).step == 0


def test_what_a_rule_reads_and_no_run_will_log_is_refused() -> None:
    watch = metrics_check("eval_loss", Known())
    watch.check({"loss": "Rule 'weak'"})
    with pytest.raises(ConfigError, match=r"^Rule 'weak' reads 'los', which no run will log\. Did you mean 'loss'"):
        watch.check({"los": "Rule 'weak'"})
    with pytest.raises(ConfigError, match=r"^Rule 'weak' reads 'eval_loss', and nothing is evaluated\. Give"):
        watch.check({"eval_loss": "Rule 'weak'"})
    metrics_check("eval_loss", Known(is_complete=False)).check({"mine": "Rule 'weak'"})


@pytest.mark.parametrize(
    ("metric", "runs"),
    [
        ("eval_loss", [Known()]),  # the training loss stands in
        ("eval_rouge_l", [Known(), EVALUATED]),
        ("mine", [Known(), Known(is_complete=False)]),
        ("mine", [Known(), None]),
        ("mine", []),
    ],
)
def test_what_may_come_is_waited_for(metric: str, runs: list[Known | None]) -> None:
    metrics_check(metric, *runs).check()


def test_it_is_said_before_training_that_the_training_loss_stands_in(caplog: pytest.LogCaptureFixture) -> None:
    """Once, however many batches of runs are launched; and not where something is evaluated or nobody knows."""
    with caplog.at_level(logging.INFO):
        metrics_check("eval_loss", Known(), EVALUATED).check()
        metrics_check("eval_loss", Known(evaluates=True, is_complete=False)).check()
        metrics_check("eval_loss", Known(), None).check()
        metrics_check("loss", Known()).check()
        assert not caplog.records
        watch = metrics_check("eval_loss", Known(), Known(is_complete=False))
        watch.check()
        watch.note(2, Known())
        watch.check()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "the training loss stands in for eval_loss" in record.getMessage()
    assert "dataset.eval_path" in record.getMessage()


def test_it_is_said_once_when_there_are_metrics_of_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    watch = metrics_check("eval_acuracy", Known(is_complete=False))
    with caplog.at_level(logging.WARNING):
        watch.look(0, {"loss": 1.0})
        assert not caplog.records, "it may be evaluated later"
        watch.look(1, {"loss": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5})
        watch.look(0, {"loss": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5})
    (record,) = caplog.records
    assert "Run 1 has not logged objective.metric, 'eval_acuracy'" in record.getMessage()
    assert "Did you mean 'eval_accuracy'? There are: eval_accuracy, eval_loss." in record.getMessage()


def test_each_objective_of_a_search_is_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    """One that is there does not hide another that is not."""
    watch = metrics_check("loss", Known(is_complete=False), searched=["entropy", "eval_acuracy", "lenght"])
    for run in range(2):
        watch.look(run, {"loss": 1.0, "entropy": 1.0, "length": 3.0})
    (record,) = caplog.records
    assert "Run 0 has not logged search.objectives[2].metric, 'lenght'" in record.getMessage()
    watch.look(1, {"loss": 1.0, "eval_accuracy": 0.5})
    assert "Run 1 has not logged search.objectives[1].metric, 'eval_acuracy'" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2


def test_nothing_is_said_of_a_metric_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    watch = metrics_check("entropy", Known())
    watch.check()
    watch.look(0, {"loss": 1.0, "entropy": 2.0})
    assert not caplog.records


def test_an_evaluation_without_a_score_so_far_is_not_misspelt(caplog: pytest.LogCaptureFixture) -> None:
    names = frozenset({"eval_f1", "eval_f1_low", "eval_f1_high", "eval_cost"})
    watch = metrics_check("eval_f1", Known(names, evaluates=True))
    watch.look(0, {"eval_f1_low": 0.0, "eval_f1_high": 1.0, "eval_missing": 4.0})
    assert not caplog.records
    metrics_check("eval_cost", Known(names, evaluates=True)).look(0, {"eval_f1": 0.5})
    assert "Run 0 has not logged objective.metric, 'eval_cost'" in caplog.text
