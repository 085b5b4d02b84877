"""The evaluation before the first step: computed once for all runs that begin as the same model.

An adapter whose second matrix is zero adds nothing, so that until its first step a run is its base model, to the last
bit, whatever its rank, targets, dropout or seed. On the same rows, in the same batches and precision, all such runs
evaluate to the same numbers. The first of them computes these; the others go through their batches, drawing what that
draws, and leave the model out. Their clocks are their own: ``eval_runtime`` says what it took them.

Nobody is taken at their word. Whether a model is its base is looked up in its weights when the evaluation begins, so
that one with a warm start, or PiSSA's, computes its own. Whatever code of a user's could have a part in the numbers
(a trainer, a callback, a metric, a loss, a collator) may count or remember what it is shown: nothing is shared then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from rfflow.config.spec import TrainSpec
from rfflow.worker.models.bases import Base
from rfflow.worker.training.context import RandomState
from rfflow.worker.training.torch_settings import read_torch_settings

_TRAINERS = ("trl.trainer.sft_trainer.SFTTrainer", "trl.trainer.dpo_trainer.DPOTrainer")
"""Those whose evaluation leaves nothing but its metrics; not what derives from them."""
_FOR_TRAINING = (
    "activation_checkpointing",
    "adam_",
    "data_seed",
    "eval_delay",
    "eval_steps",
    "eval_strategy",
    "gradient_",
    "greater_is_better",
    "hub_",
    "learning_rate",
    "load_best_model_at_end",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "lr_scheduler_",
    "max_grad_norm",
    "max_steps",
    "metric_for_best_model",
    "num_train_epochs",
    "optim",
    "output_dir",
    "per_device_train_batch_size",
    "push_to_hub",
    "report_to",
    "run_name",
    "save_",
    "seed",
    "train_sampling_strategy",
    "warmup_",
    "weight_decay",
)
"""How arguments begin that have no part in an evaluation; of any other, unknown here or not, runs have the same."""


@dataclass(frozen=True)
class _Evaluated:
    """What an evaluation came to, and nothing else that it left behind."""

    output: EvalLoopOutput
    counted: dict[str, list[float]]
    """What TRL has counted, batch by batch, and is yet to log."""


class FirstEvaluations:
    """What runs of one worker have evaluated before their first steps."""

    def __init__(self) -> None:
        self._found: dict[str, _Evaluated] = {}

    def share(self, trainer: Trainer, spec: TrainSpec, base: Base) -> None:
        """Let a trainer find what another one like it has computed; the method is replaced on this object alone."""
        if not trainer.args.eval_on_start or not _is_libraries_own(trainer, spec):
            return
        plain = trainer.evaluation_loop

        def evaluation_loop(dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            def compute() -> EvalLoopOutput:
                return plain(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)

            if trainer.state.global_step or not trainer.is_in_train or not _is_base(trainer.model, base):
                return compute()
            key = _key(trainer, spec, base, dataloader, metric_key_prefix)
            if key is None:
                return compute()
            if key not in self._found:
                return self._compute(trainer, dataloader, key, compute)
            return _repeat(trainer, dataloader, self._found[key])

        trainer.evaluation_loop = evaluation_loop

    def _compute(
        self, trainer: Trainer, dataloader: Any, key: str, compute: Callable[[], EvalLoopOutput]
    ) -> EvalLoopOutput:
        """Evaluate, and keep what came of it if going through the batches would have left the same behind."""
        device = trainer.args.device
        before, seen = RandomState.capture(device), _state(trainer)
        output = compute()
        after, changed = RandomState.capture(device), _state(trainer) != seen
        before.restore(device)
        for _ in dataloader:
            pass
        draws_the_same = RandomState.capture(device).equals(after)
        after.restore(device)
        numbers_only = output.predictions is None and output.label_ids is None
        if draws_the_same and numbers_only and not changed and "time" not in " ".join(output.metrics or {}):
            counted = {name: list(values) for name, values in _counted(trainer).items()}
            self._found[key] = _Evaluated(output._replace(metrics=dict(output.metrics or {})), counted)
        return output


def _repeat(trainer: Trainer, dataloader: Any, evaluated: _Evaluated) -> EvalLoopOutput:
    """Do all that an evaluation does but ask the model."""
    trainer.model.eval()
    trainer.callback_handler.eval_dataloader = dataloader
    for _ in dataloader:
        pass
    trainer.gather_function = trainer.accelerator.gather_for_metrics
    for name, values in evaluated.counted.items():
        _counted(trainer)[name] = list(values)
    return evaluated.output._replace(metrics=dict(evaluated.output.metrics or {}))


def _is_libraries_own(trainer: Trainer, spec: TrainSpec) -> bool:
    """Whether nothing of a user's is called in an evaluation, and none of what the libraries have remembers it."""
    callbacks = trainer.callback_handler.callbacks
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    return (
        _name(type(trainer)) in _TRAINERS
        and not spec.trainer.kwargs
        and not spec.trainer.callbacks
        and all(type(callback).__module__.startswith(("transformers.", "rfflow.")) for callback in callbacks)
        and not optimizer.startswith("schedule_free")  # which has other weights for evaluations
        and not trainer.args.fp16  # what is added is zero, unless it was infinite before
        and not trainer.args.dataloader_num_workers  # processes that stay draw once, and not in each evaluation
    )


def _key(trainer: Trainer, spec: TrainSpec, base: Base, dataloader: Any, prefix: str) -> str | None:
    """Return what evaluations have in common that come to the same; ``None`` for one that is alone."""
    rows = dataloader.dataset
    if not isinstance(rows, Dataset):
        return None
    model, args = trainer.model, trainer.args.to_dict()
    content = [
        id(base),
        None if spec.trainer.ref_model is None else spec.trainer.ref_model.key,
        prefix,
        _name(type(trainer)),
        rows._fingerprint,
        rows.column_names,
        {name: value for name, value in args.items() if not name.startswith(_FOR_TRAINING)},
        model.config.to_dict(),
        getattr(base.model.config, "_attn_implementation", None),
        # How logits are made depends on whether an adapter is there, zero or not.
        [_name(type(layer)) for layer in (model.get_output_embeddings(), model.get_input_embeddings())],
        any("lora_magnitude_vector" in name for name, _ in model.named_parameters()),
        torch.get_num_threads(),
        {name: value for name, value in read_torch_settings().items() if isinstance(value, bool | int | float | str)},
    ]
    return json.dumps(content, sort_keys=True, default=str)


def _is_base(model: torch.nn.Module, base: Base) -> bool:
    """Whether a model is its base to the last bit: each of its weights is the base's, equal to it, or adds nothing."""
    named = dict([*base.model.named_parameters(), *base.model.named_buffers()])
    shared = set(map(id, named.values()))
    return all(
        id(tensor) in shared or _adds_nothing(name, tensor) or _is_copy(tensor, named.get(_plain_name(name)))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    )


def _adds_nothing(name: str, tensor: torch.Tensor) -> bool:
    """Whether a weight is one of LoRA's that is multiplied by zero, or is the zero itself."""
    parts = name.split(".")
    if "lora_A" in parts or "lora_embedding_A" in parts:  # its B is looked at, too
        return True
    if "lora_magnitude_vector" in parts:  # of DoRA: the norms of what it scales, which then is as it was
        return True
    return ("lora_B" in parts or "lora_embedding_B" in parts) and not bool(tensor.detach().any())


def _is_copy(tensor: torch.Tensor, original: torch.Tensor | None) -> bool:
    return (
        original is not None
        and (tensor.dtype, tensor.shape) == (original.dtype, original.shape)
        and bool(torch.equal(tensor, original))
    )


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _state(trainer: Trainer) -> list[Any]:
    """Return what else an evaluation could leave behind: caches of modules, buffers, attributes of the trainer."""
    mine = {name: id(value) for name, value in vars(trainer).items() if name not in ("control", "gather_function")}
    modules = [
        (
            {name: id(value) for name, value in vars(module).items() if name not in ("training", "_is_hf_initialized")},
            [(name, id(buffer), buffer._version) for name, buffer in module._buffers.items() if buffer is not None],
        )
        for module in trainer.model.modules()
    ]
    return [mine, modules]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _counted(trainer: Trainer) -> dict[str, list[float]]:
    counted: dict[str, list[float]] = trainer._metrics["eval"]
    return counted
