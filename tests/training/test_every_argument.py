"""Every argument that docs/arguments.md calls honoured: set, trained among others, and compared with plain TRL.

All of a trainer's variants are runs of one experiment, so that what one of them does to the process would show in the
others, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rfflow.runs import RunState
from rfflow.spec import RunSpec
from tests.tiny import make_data, run_spec
from tests.training.plain import train_alone
from tests.training.test_exactness import train_together

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
}

SFT: Mapping[str, Mapping[str, Any]] = {
    "max_length": {"max_length": 20, "truncation_mode": "keep_end", "completion_only_loss": False},
    "packing": {"packing": True, "packing_strategy": "wrapped", "eval_packing": False},
    "pad_to_multiple_of": {"pad_to_multiple_of": 8},
    "shuffle_dataset": {"shuffle_dataset": True},
    "dataset_num_proc": {"dataset_num_proc": 1},
    "eos_token": {"eos_token": "<|im_start|>", "pad_token": "<|im_start|>"},
    "loss_type": {"loss_type": "dft"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows to train and to evaluate on."""
    folder = tmp_path_factory.mktemp("rows")
    return make_data(folder / "train.jsonl", rows=26), make_data(folder / "eval.jsonl", rows=7)


def compare(specs: Mapping[str, RunSpec], folder: Path) -> None:
    """Train all as one experiment, and each alone."""
    runs, together = train_together(list(specs.values()), folder / "experiment")
    failed = {name: run.error for name, run in zip(specs, runs, strict=True) if run.state is not RunState.COMPLETED}
    assert failed == {}
    differ = {}
    for number, (name, spec) in enumerate(specs.items()):
        if differences := together[str(number)].differences(train_alone(spec, folder / "alone" / str(number))):
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
