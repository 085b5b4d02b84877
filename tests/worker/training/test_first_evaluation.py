"""The evaluation before the first step is computed once for runs that begin as the same model, and for no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from rfflow.config.spec import RunSpec
from tests.support.plain import train_alone
from tests.support.tiny import make_data, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together

ARGS: Mapping[str, Any] = {"eval_on_start": True, "max_steps": 2, "per_device_eval_batch_size": 4}


class Remembers(TrainerCallback):
    """A user's, which counts the batches it is shown."""

    seen = 0

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """Count."""
        type(self).seen += 1


@pytest.fixture(scope="module")
def evaluation_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("evaluation") / "sums.jsonl", rows=10)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect which runs have asked the model before their first steps."""
    asked: list[str] = []
    original = Trainer.evaluation_loop

    def evaluation_loop(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not self.state.global_step:
            asked.append(Path(str(self.args.output_dir)).parent.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluation_loop)
    yield asked


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Who has computed it, and what is another's.
    "the first": ("0", {}),
    "rank, targets, dropout": ("0", {"peft": {"r": 8, "target_modules": "all-linear", "lora_dropout": 0.3}}),
    "seed, rate, batch": ("0", {"args": {"seed": 7, "learning_rate": 1e-2, "per_device_train_batch_size": 2}}),
    "rsLoRA, another start": ("0", {"peft": {"use_rslora": True, "init_lora_weights": "gaussian"}}),
    "biases": ("0", {"peft": {"bias": "all"}}),
    "activations recomputed": ("0", {"args": {"activation_checkpointing": True}}),
    "every weight": ("0", {"peft": None}),
    "DoRA": ("7", {"peft": {"use_dora": True}}),
    "DoRA, elsewhere": ("7", {"peft": {"use_dora": True, "target_modules": "all-linear", "r": 2}}),
    "evaluation batch": ("9", {"args": {"per_device_eval_batch_size": 3}}),
    "evaluation in bf16": ("10", {"args": {"bf16": True}}),
    "length": ("11", {"args": {"max_length": 24}}),
    "a start that is not zero": ("12", {"peft": {"init_lora_weights": False}}),
    "PiSSA": ("13", {"peft": {"init_lora_weights": "pissa"}}),
    "adapted embeddings": ("14", {"peft": {"target_modules": ["q_proj", "embed_tokens"]}}),
    "a head of its own": ("15", {"peft": {"modules_to_save": ["lm_head"]}}),
    "several sets": ("16", {"sets": True}),
    "several sets, another rank": ("16", {"sets": True, "peft": {"r": 2}}),
}


def _specs(model: Path, data: Path, evaluation: Path, variants: Sequence[dict[str, Any]]) -> list[RunSpec]:
    specs = []
    for variant in variants:
        several = {"first": str(evaluation), "second": str(data)}
        dataset = {"eval_path": several if variant.get("sets") else str(evaluation)}
        given = {"args": {**ARGS, **variant.get("args", {})}, "peft": variant.get("peft", {})}
        specs.append(run_spec(model, data, chunks=1, dataset=dataset, **given))
    return specs


def test_it_is_computed_once_and_every_run_is_as_it_would_be_alone(
    tiny_model: Path, tiny_data: Path, evaluation_rows: Path, tmp_path: Path, computed: list[str]
) -> None:
    """Log history and weights to the last bit, so that nothing was drawn more or less; and nobody shares wrongly."""
    specs = _specs(tiny_model, tiny_data, evaluation_rows, [variant for _, variant in VARIANTS.values()])
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [run.error for run in runs] == [None] * len(specs)
    first = {of: sum(one == of for one, _ in VARIANTS.values()) for of, _ in VARIANTS.values()}
    assert list(dict.fromkeys(computed)) == list(first)
    assert len(computed) == len(first) + 1  # two sets
    for number, (name, spec) in enumerate(zip(VARIANTS, specs, strict=True)):
        alone = train_alone(spec, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), name
        assert any(key.endswith("_loss") for key in alone.history[0]) and "eval_entropy" in alone.history[0]


def test_preferences_are_shared_where_all_that_counts_is_equal(
    tiny_model: Path, tmp_path: Path, computed: list[str]
) -> None:
    """DPO's policy is its reference then; what β and the loss make of it is another's."""
    rows = [
        {"prompt": f"{number}?", "chosen": f"{number}, and that is all.", "rejected": "What?"} for number in range(12)
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    kind = {"trainer": "trl.DPOTrainer", "args_target": "trl.DPOConfig", "dataset": {"eval_path": str(file)}}
    variants: list[dict[str, Any]] = [{}, {"learning_rate": 1e-3}, {"beta": 0.5}, {"precompute_ref_log_probs": True}]
    specs = [run_spec(tiny_model, file, chunks=1, **kind, args={**ARGS, **variant}) for variant in variants]
    runs, together = train_together(specs, tmp_path / "experiment")
    assert [run.error for run in runs] == [None] * len(specs)
    assert computed == ["0", "2", "3"]
    for number, spec in enumerate(specs):
        alone = train_alone(spec, tmp_path / "alone" / str(number))
        assert not together[str(number)].differences(alone), variants[number]


@pytest.mark.parametrize(
    "own",
    [
        {"callbacks": ({"_target_": "tests.worker.training.test_first_evaluation.Remembers"},)},
        {"kwargs": {"compute_metrics": "tests.worker.training.test_first_evaluation.measure"}},
    ],
    ids=["callback", "metric"],
)
def test_where_code_of_a_users_is_called_nothing_is_shared(
    own: dict[str, Any],
    tiny_model: Path,
    tiny_data: Path,
    evaluation_rows: Path,
    tmp_path: Path,
    computed: list[str],
) -> None:
    specs = _specs(tiny_model, tiny_data, evaluation_rows, [{}, {}])
    specs = [replace(spec, trainer=replace(spec.trainer, **own)) for spec in specs]
    Remembers.seen = 0
    runs, _ = train_together(specs, tmp_path / "experiment")
    assert [run.error for run in runs] == [None, None]
    assert computed == ["0", "1"]
    if "callbacks" in own:
        assert Remembers.seen == 6


def measure(prediction: Any) -> dict[str, float]:
    """A user's metric."""
    return {"rows": float(len(prediction.predictions))}
