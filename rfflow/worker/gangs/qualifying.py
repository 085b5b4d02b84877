"""Which runs can be in a gang: what a pass computes for them must be what their own models would."""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

_TRAINERS = ("SFTTrainer", "DPOTrainer", "GRPOTrainer")
"""Of TRL, as they are: each calls the decoder, and goes backward, as is known."""
_ATTENTIONS = ("sdpa", "eager")
_GROWING_ROPE = ("dynamic", "longrope")
"""Positions that depend on the longest row of the batch."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HARMLESS = "make_inputs_require_grads"
"""PEFT's and transformers' hook for activations that are recomputed."""


def why_not(trainer: Trainer, base: nn.Module) -> str | None:
    """Return why a run goes through its base model alone, ``None`` where it need not.

    Args:
        trainer: the run's.
        base: the model that it shares.
    """
    model = trainer.model
    return _of_trainer(trainer) or _of_adapter(model) or _of_base(base) or _of_decoder(model, base)


def _of_trainer(trainer: Trainer) -> str | None:
    kind, args = type(trainer), trainer.args
    if kind.__name__ not in _TRAINERS or not kind.__module__.startswith("trl."):
        return f"its trainer is {kind.__module__}.{kind.__name__}, of which it is not known how it goes backward"
    if "training_step" in vars(trainer) or "compute_loss" in vars(trainer):
        return "a method of its trainer was replaced"
    for name in ("torch_compile", "use_liger_kernel", "activation_offloading"):
        if getattr(args, name, None):
            return f"trainer.args.{name}"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "DeepSpeed or FSDP"
    if "backward" in vars(trainer.accelerator):
        return "a method of its accelerator was replaced"
    return None


def _of_adapter(model: Any) -> str | None:
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return "it trains every weight"
    if len(adapters) != 1:
        return f"it has {len(adapters)} adapters"
    config = next(iter(adapters.values()))
    if getattr(config, "use_dora", False):
        return "peft.use_dora"
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            return "peft.modules_to_save"
        if isinstance(module, BaseTunerLayer):
            reason = _of_layer(name, module)
            if reason is not None:
                return reason
    return None


def _of_layer(name: str, layer: Any) -> str | None:
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear:
        return f"{name} is {type(layer).__name__} over {type(layer.base_layer).__name__}"
    if layer.lora_variant or any(layer.lora_bias.values()):
        return f"{name} is more than plain LoRA"
    if layer.merged:
        return f"the adapter of {name} is merged"
    return None


def _of_base(base: Any) -> str | None:
    config = base.config.get_text_config()
    attention = str(base.config._attn_implementation)
    if attention not in _ATTENTIONS:
        return f"model.attn_implementation is {attention} (known: {', '.join(_ATTENTIONS)})"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope in _GROWING_ROPE:
        return f"its positions grow with the batch (rope_type {rope})"
    if getattr(base, "is_quantized", False):
        return "its base is quantised"
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "its base is a mixture of experts"
    if getattr(base, "_orig_mod", None) is not None:
        return "its base is compiled"
    return None


def _of_decoder(model: Any, base: Any) -> str | None:
    inner = model.get_base_model()
    decoder = inner.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    trained = {id(one) for one in model.parameters() if one.requires_grad}
    adapters: set[int] = set()
    if not any(isinstance(module, GradientCheckpointingLayer) for module in decoder.modules()):
        return "the layers of its base are not transformers' own"
    if not hasattr(sys.modules[type(decoder).__module__], "ALL_ATTENTION_FUNCTIONS"):
        return f"{type(decoder).__name__} attends in a way of its own"
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            if id(module) not in inside:
                return f"{name} is adapted, outside the decoder"
            adapters |= {id(one) for key, one in module.named_parameters() if "lora_" in key}
    for name, module in decoder.named_modules():
        if type(module) is nn.Dropout and module.p > 0 and "lora_dropout" not in name:
            return f"{name} of its base drops out"
        hooks = [hook for kind in _HOOKS for hook in getattr(module, kind).values()]
        if any(_HARMLESS not in getattr(hook, "__qualname__", "") for hook in hooks):
            return f"{name or 'the decoder'} has hooks"
        if "forward" in vars(module):
            return f"{name or 'the decoder'} has a forward of its own"
    if getattr(base.config.get_text_config(), "attention_dropout", 0.0):
        return "its attention drops out"
    if trained - adapters:
        return "it trains weights besides its adapter"
    hooked = (one for one in model.parameters() if one.requires_grad)
    if any(one._backward_hooks or getattr(one, "_post_accumulate_grad_hooks", None) for one in hooked):
        return "its weights have hooks"
    return None


def recomputes(trainer: Trainer) -> list[bool]:
    """Return for each layer of a run's decoder whether its activations are recomputed."""
    decoder = trainer.model.get_base_model().get_decoder()
    layers = [one for one in decoder.modules() if isinstance(one, GradientCheckpointingLayer)]
    return [bool(layer.gradient_checkpointing) for layer in layers]


def matching(trainer: Trainer) -> tuple[Any, ...]:
    """Return what must be the same for runs on one base that go through it together."""
    dtype = next(one.dtype for one in trainer.model.parameters() if one.requires_grad)
    return torch.device(trainer.args.device), dtype, trainer.args.bf16, trainer.args.fp16
