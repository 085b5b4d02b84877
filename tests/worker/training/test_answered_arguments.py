"""Arguments that nobody would read, or that a run among others cannot have, are answered before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import trl
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from rfflow.worker.training.answered_arguments import Place, check_built, check_callbacks, check_read
from rfflow.worker.training.arguments import check_values
from rfflow.worker.training.build import call_builder
from rfflow.worker.training.unread_arguments import BREAKING, GONE, NEVER, ONLY_WITH
from tests.support.tiny import run_spec

QUIET: Mapping[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "packing": False}
"""What conf/ says and is no default of the libraries."""


def answer(
    cls: type, args: Mapping[str, Any], *, evaluates: bool = True, device: str = "cpu", **changes: Any
) -> str | None:
    """Return what is said to a run with these arguments."""
    spec = run_spec("a-model", "rows.jsonl")
    known = {key: value for key, value in {**QUIET, **args}.items() if key in cls.__dataclass_fields__}  # type: ignore[attr-defined]
    kwargs = changes.pop("kwargs", {})
    spec = replace(spec, trainer=replace(spec.trainer, args=known, kwargs=kwargs), **changes)
    try:
        check_read(cls, Place(spec, torch.device(device), ("num_hidden_layers",), evaluates))
    except ConfigError as error:
        return str(error)
    return None


ANSWERED: list[tuple[type, Mapping[str, Any], str]] = [
    (trl.SFTConfig, {"model_init_kwargs": {"dtype": "bfloat16", "no_such": 1}}, "Say model.dtype=bfloat16. 'no_such'"),
    (trl.SFTConfig, {"model_init_kwargs": {"dtype": "bfloat16", "no_such": 1}}, "'no_such' is no argument of from_pre"),
    (trl.SFTConfig, {"model_init_kwargs": {"atn_implementation": "sdpa"}}, "Did you mean 'attn_implementation'"),
    (trl.SFTConfig, {"model_init_kwargs": {"torch_dtype": "auto"}}, "Say model.dtype=auto."),
    (trl.DPOConfig, {"model_init_kwargs": {"num_hidden_layers": 1}}, "Say model.num_hidden_layers=1."),
    (trl.GRPOConfig, {"trust_remote_code": True}, "Say model.trust_remote_code=true."),
    (trl.SFTConfig, {"resume_from_checkpoint": "out/checkpoint-4"}, "rfflow resume=outputs/...; to begin with"),
    (trl.SFTConfig, {"do_train": False}, "do_train is False, and rfflow trains"),
    (trl.SFTConfig, {"do_eval": False}, "say evaluate=false"),
    (trl.SFTConfig, {"do_predict": True}, "evaluation.generate.samples"),
    (trl.SFTConfig, {"max_steps": 0}, "max_steps is 0. Allowed: a whole number from 1 up, or -1"),
    (trl.SFTConfig, {"max_steps": -5}, "max_steps is -5."),
    (trl.SFTConfig, {"eval_steps": 5}, "only with trainer.args.eval_strategy=steps, which is 'no'. rfflow itself"),
    (trl.SFTConfig, {"eval_strategy": "epoch", "eval_steps": 5}, "eval_strategy=steps, which is 'epoch'"),
    (
        trl.SFTConfig,
        {"load_best_model_at_end": True},
        "eval_strategy=steps or epoch, which is 'no'. rfflow itself",
    ),
    (trl.SFTConfig, {"save_steps": 5}, "save_strategy=steps, which is 'no'. rfflow itself saves"),
    (trl.SFTConfig, {"push_to_hub": True}, "push_to_hub is True without trainer.args.hub_model_id"),
    (trl.SFTConfig, {"optim": "adamw_torch", "optim_args": "a=1"}, "with trainer.args.optim=adamw_torch: it is for"),
    (trl.SFTConfig, {"optim_target_modules": ["q_proj"]}, "optim_target_modules is ['q_proj'], and nothing would read"),
    (
        trl.SFTConfig,
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        "Did you mean 'momentum'? It reads: momentum, ",
    ),
    (
        trl.SFTConfig,
        {"dataset_kwargs": {"add_special_tokens": False}},
        "add_special_tokens is False, and nothing",
    ),
    (trl.GRPOConfig, {"generation_kwargs": {"num_beam": 2}}, "Did you mean 'num_beams'"),
    (trl.SFTConfig, {"debug": "tpu_metrics_debug"}, "rfflow trains on no TPU"),
    (trl.SFTConfig, {"accelerator_config": {"use_configured_state": True}}, "use_configured_state is True"),
    (trl.SFTConfig, {"include_for_metrics": ["loss"]}, "without trainer.compute_metrics"),
    (trl.SFTConfig, {"batch_eval_metrics": True}, "without trainer.compute_metrics"),
    (trl.GRPOConfig, {"max_tool_calling_iterations": 3}, "no trainer.tools, no trainer.environment_factory"),
    (trl.GRPOConfig, {"vllm_gpu_memory_utilization": 0.5}, "only with trainer.args.use_vllm=true"),
    (trl.GRPOConfig, {"use_vllm": True, "vllm_server_port": 1}, "vllm_mode=server, which is 'colocate'"),
]


@pytest.mark.parametrize(("cls", "args", "said"), ANSWERED)
def test_what_nobody_would_read_is_said(cls: type, args: Mapping[str, Any], said: str) -> None:
    assert said in str(answer(cls, args))


CONFIGS = (TrainingArguments, trl.SFTConfig, trl.DPOConfig, trl.GRPOConfig, trl.KTOConfig, trl.RewardConfig)


def other_than(default: Any) -> Any:
    """Return some other value."""
    return not default if isinstance(default, bool) else "another" if not isinstance(default, int | float) else 7


@pytest.mark.parametrize("key", sorted({*NEVER, *ONLY_WITH}))
def test_every_argument_of_the_tables_is_one_of_the_libraries_and_answered(key: str) -> None:
    """Alone, at any other value than its default; and at its default nothing is said."""
    cls = next(cls for cls in CONFIGS if key in cls.__dataclass_fields__)
    default = cls.__dataclass_fields__[key].default
    said = str(answer(cls, {key: other_than(default), "activation_checkpointing": False}))
    assert f"trainer.args.{key} is " in said and ("nothing would read it" in said or "no run of rfflow" in said)
    assert answer(cls, {key: default}) is None


@pytest.mark.parametrize(
    ("cls", "args", "changes"),
    [
        (trl.SFTConfig, {"do_train": True, "do_eval": True}, {}),
        (trl.SFTConfig, {"do_eval": False}, {"evaluate": False}),
        (trl.SFTConfig, {"do_predict": False, "resume_from_checkpoint": None, "deepspeed": None}, {}),
        (trl.SFTConfig, {"max_steps": -1, "local_rank": -1}, {}),
        (trl.SFTConfig, {"eval_strategy": "steps", "eval_steps": 5, "eval_delay": 2}, {}),
        (trl.SFTConfig, {"eval_strategy": "no", "save_strategy": "no", "report_to": "none"}, {"evaluates": False}),
        (trl.SFTConfig, {"save_strategy": "epoch", "save_total_limit": 2}, {}),
        (trl.SFTConfig, {"eval_packing": True, "packing_strategy": "wrapped"}, {}),
        (trl.SFTConfig, {"optim": "rmsprop", "optim_args": "momentum=0.5, centered=true"}, {}),
        (trl.SFTConfig, {"optim": "sgd"}, {}),
        (trl.SFTConfig, {"report_to": ["trackio"], "project": "mine"}, {}),
        (trl.SFTConfig, {"report_to": "all", "project": "mine"}, {}),
        (trl.SFTConfig, {"push_to_hub": True, "hub_model_id": "me/one"}, {}),
        (trl.SFTConfig, {"include_for_metrics": ["loss"]}, {"kwargs": {"compute_metrics": "my.metric"}}),
        (trl.DPOConfig, {"loss_type": ["sigmoid", "robust"], "label_smoothing": 0.1}, {}),
        (trl.GRPOConfig, {"model_init_kwargs": {"dtype": "auto"}}, {"kwargs": {"reward_funcs": ["a/model"]}}),
        (trl.GRPOConfig, {"max_tool_calling_iterations": 1}, {"kwargs": {"tools": ["my.tool"]}}),
        (trl.GRPOConfig, {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 1}, {}),
        (trl.GRPOConfig, {"loss_type": "sapo", "sapo_temperature_pos": 2.0}, {}),
        (TrainingArguments, {"save_strategy": "steps", "save_steps": 10}, {}),
        (TrainingArguments, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"a": 1}}, {}),
    ],
)
def test_what_is_read_passes(cls: type, args: Mapping[str, Any], changes: dict[str, Any]) -> None:
    assert answer(cls, args, **changes) is None


def test_evaluations_need_rows() -> None:
    for args in ({"eval_strategy": "steps"}, {"do_eval": True}):
        said = str(answer(trl.SFTConfig, args, evaluates=False))
        assert (
            "there is nothing to evaluate on. Give dataset.eval_path, dataset.eval_split or dataset.eval_size" in said
        )


def test_the_device_is_the_experiments() -> None:
    said = str(answer(trl.SFTConfig, {"use_cpu": True}, device="cuda"))
    assert "use_cpu is True, and runs train on cuda. Say engine.accelerator=cpu." in said
    assert answer(trl.SFTConfig, {"use_cpu": True}) is None


@pytest.mark.parametrize("key", sorted(GONE))
def test_what_the_libraries_had_once_is_answered_with_what_to_say_now(key: str) -> None:
    """And is really no argument any more."""
    for cls in CONFIGS:
        assert key not in cls.__dataclass_fields__  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=f"trainer.args.{key} is not an argument of SFTConfig any more. "):
        check_values(trl.SFTConfig, {key: 1}, "trainer.args")


def test_early_stopping_without_evaluations_to_count_is_answered() -> None:
    """transformers asserts it at the first step."""
    callbacks = [EarlyStoppingCallback(2)]
    with pytest.raises(ConfigError, match=r"EarlyStoppingCallback counts the trainer's own evaluations"):
        check_callbacks(callbacks, trl.SFTConfig, {"eval_strategy": "no"})
    with pytest.raises(ConfigError, match=r"metric_for_best_model=eval_loss"):
        check_callbacks(callbacks, trl.SFTConfig, {"eval_strategy": "epoch"})
    check_callbacks(callbacks, trl.SFTConfig, {"eval_strategy": "epoch", "metric_for_best_model": "eval_loss"})


@pytest.mark.parametrize("key", BREAKING)
def test_a_trainer_that_an_app_has_built_is_looked_at_too(key: str) -> None:
    args = TrainingArguments(output_dir="out", use_cpu=True, report_to="none")
    check_built(args)
    setattr(args, key, other_than(getattr(args, key)))
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(output_dir="out", use_cpu=True, report_to="none"))
    trainer.args = args
    with pytest.raises(ConfigError, match=f"^{key} is .*, which no run of rfflow can have"):
        call_builder(lambda: trainer)


def test_an_answer_comes_before_the_trainer_is_built(tiny_model: Any, tiny_data: Any, tmp_path: Any) -> None:
    """Through the whole of rfflow, naming the run."""
    from tests.worker.training.test_exactness import train_together

    run: RunSpec = run_spec(tiny_model, tiny_data, args={"model_init_kwargs": {"dtype": "bfloat16"}})
    with pytest.raises(ConfigError, match=r"^Run 0 .*model_init_kwargs is .*Say model\.dtype=bfloat16\.$"):
        train_together([run], tmp_path)
