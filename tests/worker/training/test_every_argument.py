"""Every argument that docs/arguments.md calls honoured: set, trained among others, and compared with plain TRL.

All of a trainer's variants are runs of one experiment, so that what one of them does to the process would show in the
others, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EvalPrediction
from trl import SFTConfig

from rfflow.config.spec import RunSpec
from rfflow.runs.run import RunState
from tests.support.plain import train_alone
from tests.support.tiny import CHAT_TEMPLATE, make_data, make_rows, run_spec, write_jsonl
from tests.worker.training.test_dpo import preferences
from tests.worker.training.test_exactness import train_together

EVALUATES: Mapping[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
SAVES: Mapping[str, Any] = {"save_strategy": "steps", "save_steps": 2}

ANY: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "num_train_epochs": {"num_train_epochs": 2, "max_steps": -1},
    "learning_rate": {"learning_rate": 1e-2},
    "per_device_train_batch_size": {"per_device_train_batch_size": 3},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    "warmup_steps": {"warmup_steps": 2},
    "warmup_steps as a share": {"warmup_steps": 0.5},
    "optim": {"optim": "sgd"},
    "optim 2": {"optim": "adafactor"},
    "optim 3": {"optim": "rmsprop", "optim_args": "momentum=0.5"},
    "weight_decay": {"weight_decay": 0.3},
    "adam": {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 1e-2},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "label_smoothing_factor": {"label_smoothing_factor": 0.2},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "activation_checkpointing": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False, "every_n_layers": 2},
    },
    "gradient_checkpointing": {
        "activation_checkpointing": None,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "use_cache": {"use_cache": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_steps": {"logging_steps": 3, "logging_first_step": True, "logging_nan_inf_filter": False},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": True},
    "log_level": {"log_level": "error"},
    "disable_tqdm": {"disable_tqdm": False},
    "eval_strategy": {**EVALUATES, "eval_delay": 3, "per_device_eval_batch_size": 3, "eval_accumulation_steps": 1},
    "eval_on_start": {**EVALUATES, "eval_on_start": True, "prediction_loss_only": True},
    "save_strategy": {**SAVES, "save_total_limit": 1, "save_only_model": True},
    "load_best_model_at_end": {
        **EVALUATES,
        **SAVES,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    },
    "lr_scheduler_type 2": {**EVALUATES, "lr_scheduler_type": "reduce_lr_on_plateau"},
    "full_determinism": {"full_determinism": True},
    "seed": {"seed": 7, "data_seed": None},
    "data_seed": {"data_seed": 7},
    "accelerator_config": {"accelerator_config": {"use_seedable_sampler": False, "even_batches": False}},
    "accelerator_config 2": {"accelerator_config": {"split_batches": True, "dispatch_batches": True}},
    "dataloader_drop_last": {"dataloader_drop_last": True, "per_device_eval_batch_size": 5},
    "dataloader_num_workers": {
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 3,
        "dataloader_multiprocessing_context": "fork",
        "dataloader_pin_memory": False,
        "dataloader_in_order": True,
    },
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "train_sampling_strategy 2": {"train_sampling_strategy": "sequential"},
    "debug": {"debug": "underflow_overflow"},
    "do_train": {"do_train": True, "do_eval": True, "run_name": "mine"},
    "eval_do_concat_batches": {**EVALUATES, "eval_do_concat_batches": False},
    "label_names": {**EVALUATES, "label_names": ["labels"]},
    "several devices": {
        "ddp_find_unused_parameters": False,
        "ddp_bucket_cap_mb": 10,
        "ddp_broadcast_buffers": False,
        "ddp_static_graph": False,
        "ddp_timeout": 100,
        "eval_use_gather_object": True,
        "log_level_replica": "error",
        "log_on_each_node": False,
        "save_on_each_node": True,
    },
}

SFT: Mapping[str, Mapping[str, Any]] = {
    "max_length": {"max_length": 20, "truncation_mode": "keep_end", "completion_only_loss": False},
    "packing": {"packing": True, "packing_strategy": "wrapped", "eval_packing": False},
    "padding_free": {"padding_free": True, "max_length": None},
    "pad_to_multiple_of": {"pad_to_multiple_of": 8},
    "shuffle_dataset": {"shuffle_dataset": True},
    "dataset_num_proc": {"dataset_num_proc": 1},
    "eos_token": {"eos_token": "<|im_start|>", "pad_token": "<|im_start|>"},
    "loss_type": {"loss_type": "dft"},
    "dataset_kwargs": {"dataset_kwargs": {"skip_prepare_dataset": False}},
}
OTHER_ROWS: Mapping[str, Mapping[str, Any]] = {
    "dataset_text_field": {"dataset_text_field": "body"},
    "length_column_name": {"train_sampling_strategy": "group_by_length", "length_column_name": "size"},
    "remove_unused_columns": {"remove_unused_columns": False, "dataset_text_field": "body"},
    "assistant_only_loss": {"assistant_only_loss": True},
    "chat_template_path": {"chat_template_path": "the file"},
    "chat_template_kwargs": {"chat_template_kwargs": {"greeting": "Hello!"}},
    "metrics": {
        **EVALUATES,
        "batch_eval_metrics": True,
        "include_for_metrics": ["inputs", "loss"],
    },
}


DPO: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "beta": {"beta": 0.4},
    "loss_type": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    "label_smoothing": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "discopop_tau": {"loss_type": ["discopop"], "discopop_tau": 0.2},
    "f_divergence_type": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    "ld_alpha": {"ld_alpha": 0.5},
    "use_weighting": {"use_weighting": True},
    "max_length": {"max_length": 40, "truncation_mode": "keep_end"},
    "precompute_ref_log_probs": {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3},
    "disable_dropout": {"disable_dropout": False},
    "padding_free": {"padding_free": True},
    "pad_to_multiple_of": {"pad_to_multiple_of": 8, "pad_token": "<|im_start|>", "dataset_num_proc": 1},
}
DPO_EVERY_WEIGHT: Mapping[str, Mapping[str, Any]] = {
    "sync_ref_model": {"sync_ref_model": True, "ref_model_mixup_alpha": 0.7, "ref_model_sync_steps": 2},
}
KTO: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "beta": {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5},
    "loss_type": {"loss_type": "apo_zero_unpaired"},
    "max_length": {"max_length": 30, "pad_to_multiple_of": 8, "disable_dropout": False},
}
REWARD: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "center_rewards_coefficient": {"center_rewards_coefficient": 0.1},
    "max_length": {"max_length": 90, "pad_to_multiple_of": 8, "disable_dropout": False, "dataset_num_proc": 1},
    "tokens": {"eos_token": "<|im_start|>", "pad_token": "<|im_start|>"},
}
GENERATED: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "temperature": {"temperature": 0.5, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2},
    "generation_kwargs": {"generation_kwargs": {"no_repeat_ngram_size": 1}, "cache_implementation": "static"},
    "num_generations": {"num_generations": 4, "num_generations_eval": 2},
    "max_completion_length": {"max_completion_length": 3, "mask_truncated_completions": True},
    "generation_batch_size": {"generation_batch_size": 8},
    "steps_per_generation": {"steps_per_generation": 2, "num_iterations": 2},
    "shuffle_dataset": {"shuffle_dataset": False},
    "disable_dropout": {"disable_dropout": True},
    "pad_to_multiple_of": {"pad_to_multiple_of": 8},
    "beta": {"beta": 0.2},
    "epsilon": {"epsilon": 0.01, "epsilon_high": 0.02, "num_iterations": 2},
    "reward_weights": {"reward_weights": [0.5]},
    "log_completions": {"log_completions": True, "num_completions_to_print": 1, "log_unique_prompts": True},
}
GRPO: Mapping[str, Mapping[str, Any]] = {
    "cast_lm_head_to_fp32": {"cast_lm_head_to_fp32": True},
    "delta": {"delta": 1.1, "num_iterations": 2},
    "sapo": {"loss_type": "sapo", "sapo_temperature_neg": 1.2, "sapo_temperature_pos": 0.8},
    "vespo": {
        "loss_type": "vespo",
        "vespo_k_pos": 1.0,
        "vespo_lambda_pos": 1.5,
        "vespo_k_neg": 1.6,
        "vespo_lambda_neg": 1.7,
    },
    "importance_sampling_level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "multi_objective_aggregation": {"multi_objective_aggregation": "normalize_then_sum"},
    "scale_rewards": {"scale_rewards": "batch"},
    "top_entropy_quantile": {"top_entropy_quantile": 0.5},
    "entropy": {
        "entropy_coef": 0.1,
        "use_adaptive_entropy": True,
        "entropy_coef_min": 0.01,
        "entropy_coef_max": 0.5,
        "entropy_coef_delta": 0.05,
        "entropy_target": 1.0,
    },
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
    "use_bias_correction_kl": {"use_bias_correction_kl": False, "beta": 0.2, "num_iterations": 2},
}
RLOO: Mapping[str, Mapping[str, Any]] = {
    "normalize_advantages": {"normalize_advantages": True, "reward_clip_range": [-0.5, -0.1]},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows to train and to evaluate on."""
    folder = tmp_path_factory.mktemp("rows")
    return make_data(folder / "train.jsonl", rows=26), make_data(folder / "eval.jsonl", rows=7)


def compare(specs: Mapping[str, RunSpec], folder: Path, **given: Mapping[str, Any]) -> None:
    """Train all as one experiment, and each alone; ``given`` is what a trainer alone is made with, by run."""
    runs, together = train_together(list(specs.values()), folder / "experiment")
    failed = {name: run.error for name, run in zip(specs, runs, strict=True) if run.state is not RunState.COMPLETED}
    assert failed == {}
    differ = {}
    for number, (name, spec) in enumerate(specs.items()):
        alone = train_alone(spec, folder / "alone" / str(number), **given.get(name, {}))
        if differences := together[str(number)].differences(alone):
            differ[name] = differences
    assert differ == {}


@pytest.mark.slow
def test_supervised_fine_tuning(tiny_model: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    train, evaluation = files
    specs = {
        name: run_spec(
            tiny_model, train, chunks=2, dataset={"eval_path": str(evaluation)}, args={"max_steps": 5, **args}
        )
        for name, args in {**ANY, **SFT}.items()
    }
    compare(specs, tmp_path)


def length(prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
    """Count, as a metric does that is asked batch by batch."""
    return {"columns": float(prediction.predictions.shape[-1]), "inputs": float(prediction.inputs is not None)}


@pytest.mark.slow
def test_other_rows(tiny_model: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Texts under another name, conversations, a metric."""
    sums = make_rows(16)
    texts = write_jsonl(tmp_path / "t.jsonl", [{"body": row["completion"], "size": len(row["prompt"])} for row in sums])
    talks = write_jsonl(
        tmp_path / "c.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            for row in sums
        ],
    )
    asked = write_jsonl(
        tmp_path / "a.jsonl", [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in sums]
    )
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("assistant", "helper"))

    def spec(name: str, file: Path, **more: Any) -> RunSpec:
        args = {key: str(template) if value == "the file" else value for key, value in OTHER_ROWS[name].items()}
        return run_spec(tiny_model, file, chunks=2, args={"max_steps": 4, **args}, **more)

    metric = spec("metrics", files[0], dataset={"eval_path": str(files[1])})
    kwargs = {"compute_metrics": "tests.worker.training.test_every_argument.length"}
    generated = {"max_completion_length": 4, "num_generations": 2, **OTHER_ROWS["chat_template_kwargs"]}
    grpo = run_spec(tiny_model, asked, chunks=2, trainer="trl.GRPOTrainer", args_target="trl.GRPOConfig")
    given = {key: value for key, value in grpo.trainer.args.items() if key != "max_length"}
    rewards = {"reward_funcs": ["tests.worker.training.test_every_argument.brief"]}
    specs = {
        "dataset_text_field": spec("dataset_text_field", texts),
        "length_column_name": spec("length_column_name", files[0]),
        "remove_unused_columns": spec("remove_unused_columns", texts),
        "assistant_only_loss": spec("assistant_only_loss", talks),
        "chat_template_path": spec("chat_template_path", talks),
        "metrics": replace(metric, trainer=replace(metric.trainer, kwargs=kwargs)),
        "chat_template_kwargs": replace(
            grpo, trainer=replace(grpo.trainer, args={**given, **generated, "max_steps": 2}, kwargs=rewards)
        ),
    }
    assert specs.keys() == OTHER_ROWS.keys()
    plain = run_spec(tiny_model, files[0], chunks=2, args={"max_steps": 4})
    chosen = {"optimizer_cls_and_kwargs": {"_target_": "torch.optim.SGD", "momentum": 0.9}}
    specs["an optimizer"] = replace(plain, trainer=replace(plain.trainer, kwargs=chosen))
    rate = SFTConfig.learning_rate
    optimizer = (torch.optim.SGD, {"momentum": 0.9, "lr": rate})
    compare(
        specs,
        tmp_path,
        metrics={"compute_metrics": length},
        **{"an optimizer": {"optimizer_cls_and_kwargs": optimizer}},
    )


def brief(completions: list[Any], **_: Any) -> list[float]:
    """Reward few letters."""
    return [-float(len(completion[0]["content"])) for completion in completions]


def others(
    model: Path, train: Path, algorithm: str, variants: Mapping[str, Mapping[str, Any]], **more: Any
) -> dict[str, RunSpec]:
    """Return the runs of another trainer."""
    trainer = {"trainer": f"trl.{algorithm}Trainer", "args_target": f"trl.{algorithm}Config"}
    return {
        f"{algorithm} {name}": run_spec(model, train, chunks=2, args={"max_steps": 4, **args}, **trainer, **more)
        for name, args in variants.items()
    }


@pytest.mark.slow
def test_preferences(tiny_model: Path, tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", preferences(16))
    labelled = [{**row, "label": index % 3 > 0} for index, row in enumerate(make_rows(16))]
    answers = write_jsonl(tmp_path / "answers.jsonl", labelled)
    head = {"auto_class": "AutoModelForSequenceClassification", "num_labels": 1, "head_seed": 42}
    compare(
        {
            **others(tiny_model, pairs, "DPO", DPO),
            **others(tiny_model, pairs, "DPO", DPO_EVERY_WEIGHT, peft=None),
            **others(tiny_model, answers, "KTO", KTO),
            **others(tiny_model, pairs, "Reward", REWARD, model_kwargs=head, peft={"task_type": "SEQ_CLS"}),
        },
        tmp_path,
    )


def few_vowels(completions: list[str], **_: Any) -> list[float]:
    """Reward text with few vowels."""
    return [-sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


@pytest.mark.slow
def test_generation(tiny_model: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in make_rows(12)])
    own = {"max_length": None, "max_completion_length": 6, "num_generations": 2, "per_device_train_batch_size": 4}
    specs: dict[str, RunSpec] = {}
    for algorithm, variants in (("GRPO", {**GENERATED, **GRPO}), ("RLOO", {**GENERATED, **RLOO})):
        for name, args in variants.items():
            known = {key: value for key, value in {**own, **args}.items() if value is not None}
            (run,) = others(tiny_model, prompts, algorithm, {name: known}).values()
            given = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
            kwargs = {"reward_funcs": ["tests.worker.training.test_every_argument.few_vowels"]}
            specs[f"{algorithm} {name}"] = replace(run, trainer=replace(run.trainer, args=given, kwargs=kwargs))
    compare(specs, tmp_path)
