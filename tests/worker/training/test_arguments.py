"""Typos and wrong types in TRL's and PEFT's arguments."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from trl import SFTConfig

from rfflow.errors import ConfigError
from rfflow.worker.training.arguments import check_values


@pytest.mark.parametrize(
    ("cls", "key", "value", "said"),
    [
        (SFTConfig, "warmup_step", 3, "args.warmup_step is not an argument of SFTConfig. Did you mean 'warmup_steps'"),
        (SFTConfig, "num_train_epochs", "two", "args.num_train_epochs is 'two' (str). SFTConfig takes: float"),
        (SFTConfig, "packing", "yes", "args.packing is 'yes' (str). SFTConfig takes: bool"),
        (SFTConfig, "per_device_train_batch_size", 2.5, "2.5 (float). SFTConfig takes: int"),
        (SFTConfig, "learning_rate", True, "args.learning_rate is True (bool)"),
        (SFTConfig, "learning_rate", None, "args.learning_rate is null. SFTConfig takes: float"),
        (LoraConfig, "lora_aplha", 3, "args.lora_aplha is not an argument of LoraConfig. Did you mean 'lora_alpha'"),
        (LoraConfig, "r", "8", "args.r is '8' (str). LoraConfig takes: int"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(cls: type, key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_values(cls, {key: value}, "args")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (SFTConfig, {"learning_rate": 1, "max_steps": -1, "optim": "adamw_torch", "lr_scheduler_type": "cosine"}),
        (SFTConfig, {"warmup_steps": 0.1, "eval_strategy": "steps", "lr_scheduler_kwargs": {"a": 1}}),
        (SFTConfig, {"max_length": None}),
        (LoraConfig, {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": False, "bias": "all"}),
        (LoraConfig, {"target_modules": "all-linear", "init_lora_weights": "pissa", "rank_pattern": {"q": 4}}),
    ],
)
def test_what_the_libraries_take_passes(cls: type, values: dict[str, Any]) -> None:
    check_values(cls, values, "args")
