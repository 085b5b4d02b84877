"""What trainers will log is known before they train, and all that they log then is among it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import ControlSpec, ExperimentSpec, GenerateSpec, Objective, RunSpec
from rfflow.engine.engine import Engine
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.errors import ConfigError
from rfflow.runs.events import ExpectedMetrics
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_dpo import preferences

HERE = "tests.worker.training.test_expected_metrics"


def shortness(completions: list[str], **_: Any) -> list[float]:
    """Reward short text."""
    return [-float(len(text)) for text in completions]


def telling(completions: list[str], log_metric: Any, **_: Any) -> list[float]:
    """Log something of its own."""
    log_metric("my_metric", 1.0)
    return [float(len(text)) for text in completions]


def metric(prediction: Any) -> dict[str, float]:
    """Return a metric whose name nobody knows before."""
    return {"mine": 1.0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file for each kind of trainer."""
    folder = tmp_path_factory.mktemp("rows")
    sums = make_rows(16)
    labelled = [{**row, "label": index % 2 > 0} for index, row in enumerate(sums)]
    kinds = {"SFT": sums, "DPO": preferences(16), "Reward": preferences(16), "KTO": labelled, "GRPO": sums}
    return {kind: write_jsonl(folder / f"{kind}.jsonl", rows) for kind, rows in kinds.items()}


def spec(model: Path, rows: dict[str, Path], kind: str, *rewards: str, **kwargs: Any) -> RunSpec:
    """Make a short run."""
    kwargs = {"args": {"max_steps": 2, "per_device_eval_batch_size": 4}, "chunks": 1, "eval_size": 4, **kwargs}
    if kind == "Reward":
        kwargs["model_kwargs"] = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1}
    run = run_spec(model, rows[kind], trainer=f"trl.{kind}Trainer", args_target=f"trl.{kind}Config", **kwargs)
    if kind == "GRPO":
        args = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
        args |= {"num_generations": 2, "max_completion_length": 3, "beta": 0.1}
        named = {"reward_funcs": [f"{HERE}.{name}" for name in rewards or ["shortness"]]}
        run = replace(run, trainer=replace(run.trainer, args=args, kwargs=named))
    return run


def train(root: Path, objective: str, *specs: RunSpec) -> list[Run]:
    experiment = ExperimentSpec(
        name="test", accelerator="cpu", objective=Objective(objective), control=ControlSpec(enabled=False)
    )
    engine = Engine(experiment, ExperimentPaths(root))
    for number, run in enumerate(specs):
        engine.add(run, number)
    engine.run()
    engine.close()
    return engine.experiment.runs


def test_all_that_is_logged_was_foreseen(
    tiny_model: Path, rows: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this version of TRL; names are read from its source."""
    seen: dict[int, ExpectedMetrics] = {}
    monkeypatch.setattr(MetricsCheck, "note", lambda self, run, known: seen.update({run: known}))
    runs = train(tmp_path, "loss", *(spec(tiny_model, rows, kind) for kind in rows))
    for kind, run in zip(rows, runs, strict=True):
        assert run.error is None, kind
        assert seen[run.number].is_complete and seen[run.number].is_complete_for_evaluation, kind
        assert len(run.metrics) > 5 and run.metrics.keys() <= seen[run.number].names, kind
        # What experts, vLLM or the end of a training log is not offered to who mistypes a metric.
        assert seen[run.number].offered - run.metrics.keys() <= {"eval_step_time"}, kind


@pytest.mark.parametrize(
    ("kind", "change", "objective", "said"),
    [
        ("SFT", {"eval_size": 0}, "eval_entropy", "'eval_entropy', and nothing is evaluated. Give dataset.eval_path"),
        ("SFT", {}, "los", "Did you mean 'loss'"),
        ("SFT", {}, "eval_mean_token_acc", "Did you mean 'eval_mean_token_accuracy'"),
        ("DPO", {}, "eval_reward/accuracies", "Did you mean 'eval_rewards/accuracies'"),
        ("GRPO", {"evaluate": False}, "rewards/short/mean", "Did you mean 'rewards/shortness/mean'"),
    ],
)
def test_a_misspelt_objective_is_refused_before_training(
    tiny_model: Path,
    rows: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: dict[str, Any],
    objective: str,
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, objective, spec(tiny_model, rows, kind, **change))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_scores_of_generated_answers_are_known(tiny_model: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    run = replace(
        spec(tiny_model, rows, "SFT", evaluate=False),
        generate=GenerateSpec(2, max_new_tokens=2, scores=("rfflow.scores.rouge_l",)),
    )
    (trained,) = train(tmp_path / "right", "eval_rouge_l", run)
    assert "eval_rouge_l" in trained.metrics
    with pytest.raises(ConfigError, match=r"Did you mean 'eval_rouge_l' or 'eval_loss'|Did you mean 'eval_rouge_l'"):
        train(tmp_path / "wrong", "eval_rouge", run)


def test_metrics_of_ones_own_are_missed_at_the_first_boundary(
    tiny_model: Path, rows: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can know them before: they come of compute_metrics, or of log_metric in a reward function."""
    run = spec(tiny_model, rows, "SFT")
    run = replace(run, trainer=replace(run.trainer, kwargs={"compute_metrics": {"_target_": f"{HERE}.metric"}}))
    with caplog.at_level(logging.WARNING, "rfflow.engine.metrics_check"):
        train(tmp_path / "metric", "eval_min", run)
        assert "'eval_min'" in caplog.text and "Did you mean 'eval_mine'" in caplog.text
        caplog.clear()
        train(tmp_path / "reward", "my_metrc", spec(tiny_model, rows, "GRPO", "telling", evaluate=False))
        assert "Did you mean 'my_metric'" in caplog.text
        caplog.clear()
        train(tmp_path / "right", "my_metric", spec(tiny_model, rows, "GRPO", "telling", evaluate=False))
        assert not caplog.records


def test_a_metric_that_no_evaluation_of_the_trainer_will_have_is_refused(
    tiny_model: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    """transformers raises a KeyError at its first evaluation, by when a run may have trained for hours."""
    asked = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    for metric, said in (("eval_los", "Did you mean 'eval_loss'"), ("accuracy", "will have eval_accuracy")):
        run = spec(tiny_model, rows, "SFT", args={**asked, "metric_for_best_model": metric})
        engine = Engine(
            ExperimentSpec(name="test", accelerator="cpu", control=ControlSpec(enabled=False)),
            ExperimentPaths(tmp_path / metric),
        )
        engine.add(run, 0)
        with pytest.raises(ConfigError, match=f"metric_for_best_model is '{metric}', .*{said}"):
            engine.run()
        engine.close()
