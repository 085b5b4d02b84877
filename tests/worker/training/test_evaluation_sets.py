"""Several evaluation sets by name: the metrics of each, what ranks, and nothing of the run is moved."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from rfflow.config.spec import ControlSpec, ExperimentSpec, GenerateSpec, Objective, RunSpec
from rfflow.engine.engine import Engine
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.errors import ConfigError
from rfflow.runs.events import ExpectedMetrics
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from rfflow.worker.data.rows import load_data
from tests.support.plain import train_alone
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_dpo import preferences
from tests.worker.training.test_exactness import outcomes

Make = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows to train on, and two sets to evaluate on."""
    folder = tmp_path_factory.mktemp("sets")
    rows = make_rows(32)
    sets = {"train": rows[:16], "easy": rows[16:20], "easy_hard": [{**row, "prompt": "?"} for row in rows[20:32]]}
    return {name: write_jsonl(folder / f"{name}.jsonl", part) for name, part in sets.items()}


@pytest.fixture
def spec(tiny_model: Path, files: dict[str, Path]) -> Make:
    """Make a run that is evaluated on both sets."""

    def make(**kwargs: Any) -> RunSpec:
        sets = {"easy": str(files["easy"]), "easy_hard": str(files["easy_hard"])}
        kwargs = {"chunks": 2, "dataset": {"eval_path": sets}, **kwargs}
        return run_spec(tiny_model, files["train"], **kwargs)

    return make


def train(root: Path, *specs: RunSpec, objective: str = "eval_loss") -> list[Run]:
    experiment = ExperimentSpec(
        name="test",
        accelerator="cpu",
        objective=Objective(objective),
        control=ControlSpec(enabled=False),
        callbacks={"log": {"_target_": "rfflow.tracking.metrics_log.MetricsLog"}},
    )
    engine = Engine(experiment, ExperimentPaths(root))
    runs = [engine.add(spec, number) for number, spec in enumerate(specs)]
    engine.run()
    engine.close()
    return runs


@pytest.mark.parametrize("own", [False, True], ids=["ours", "the trainer's"])
def test_each_set_has_its_metrics_and_the_mean_ranks(spec: Make, tmp_path: Path, own: bool) -> None:
    """Whoever evaluates; and the run ends as TRL alone ends it, bit for bit, history included."""
    args = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True} if own else {}
    variants = [spec(args=args | {"learning_rate": rate}, evaluate=not own) for rate in (1e-2, 1e-3)]
    with outcomes() as together:
        runs = train(tmp_path / "together", *variants)
    for number, (run, variant) in enumerate(zip(runs, variants, strict=True)):
        assert run.error is None and len(run.chunks) == 2
        for chunk in run.chunks:
            losses = [chunk.metrics[f"eval_{name}_loss"] for name in ("easy", "easy_hard")]
            assert losses[0] != losses[1]
            assert chunk.metrics["eval_loss"] == pytest.approx(sum(losses) / 2)
        assert run.metrics["eval_easy_entropy"] != run.metrics["eval_easy_hard_entropy"]
        assert "eval_entropy" not in run.metrics
        assert not together[str(number)].differences(train_alone(variant, tmp_path / "alone" / str(number)))
    lines = [json.loads(line)["metrics"] for line in runs[0].paths.metrics.read_text().splitlines()]
    logged = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(logged) == (3 if own else 2) and logged[-1] == runs[0].metrics["eval_loss"]


def test_all_that_is_logged_of_sets_was_foreseen(
    spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[int, ExpectedMetrics] = {}
    note = MetricsCheck.note
    monkeypatch.setattr(
        MetricsCheck, "note", lambda self, run, known: (seen.update({run: known}), note(self, run, known))[-1]
    )
    generate = GenerateSpec(2, max_new_tokens=2, scores=("rfflow.scores.rouge_l",))
    with caplog.at_level(logging.INFO, "rfflow.engine.metrics_check"):
        (run,) = train(tmp_path / "right", replace(spec(chunks=1), generate=generate))
    assert run.error is None and seen[0].is_complete_for_evaluation
    assert run.metrics.keys() <= seen[0].names
    scores = [run.metrics[f"eval_{name}_rouge_l"] for name in ("easy", "easy_hard")]
    assert run.metrics["eval_rouge_l"] == pytest.approx(sum(scores) / 2)
    assert "eval_loss, which ranks the runs, is the mean of eval_easy_loss and eval_easy_hard_loss" in caplog.text
    with pytest.raises(ConfigError, match=r"'eval_eazy_loss', which no run will log. Did you mean 'eval_easy_loss'"):
        train(tmp_path / "wrong", spec(), objective="eval_eazy_loss")
    caplog.clear()
    train(tmp_path / "one", spec(chunks=1), objective="eval_easy_loss")
    assert "mean of" not in caplog.text


def test_the_best_model_of_several_sets_needs_a_set(spec: Make, tmp_path: Path) -> None:
    args = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    args |= {"load_best_model_at_end": True}
    with pytest.raises(
        ConfigError, match=r"metric_for_best_model is 'loss', .* Say eval_easy_loss or eval_easy_hard_loss"
    ):
        train(tmp_path, spec(args=args))
    (run,) = train(tmp_path / "right", spec(args={**args, "metric_for_best_model": "easy_loss"}))
    assert run.error is None


def test_preferences_are_evaluated_on_several_sets_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = preferences(16)
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", rows[first : first + 8]) for name, first in (("a", 0), ("b", 8))
    }
    sets = {name: str(file) for name, file in files.items()}
    kinds = {"trainer": "trl.DPOTrainer", "args_target": "trl.DPOConfig", "dataset": {"eval_path": sets}}
    variant = run_spec(tiny_model, files["a"], chunks=1, args={"precompute_ref_log_probs": True}, **kinds)
    with outcomes() as together:
        (run,) = train(tmp_path / "together", variant)
    assert run.error is None
    assert run.metrics["eval_a_rewards/margins"] != run.metrics["eval_b_rewards/margins"]
    assert not together["0"].differences(train_alone(variant, tmp_path / "alone"))


def test_sets_are_splits_of_a_folder(tmp_path: Path) -> None:
    rows = make_rows(9)
    splits = {"train": rows[:4], "easy": rows[4:6], "hard": rows[6:]}
    DatasetDict({name: Dataset.from_list(part) for name, part in splits.items()}).save_to_disk(str(tmp_path / "saved"))
    spec = run_spec("model", tmp_path / "saved", dataset={"eval_split": {"a": "easy", "b": "hard"}}).dataset
    data = load_data(spec, 42)
    assert {name: part.to_list() for name, part in data.evaluation_sets().items()} == {"a": rows[4:6], "b": rows[6:]}
    with pytest.raises(ConfigError, match=r"dataset.eval_split is 'heard'.*Splits: train, easy, hard"):
        load_data(replace(spec, eval_split={"a": "heard"}), 42)
