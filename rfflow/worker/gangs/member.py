"""A run in a gang: where its trainer asks for the decoder, and where it goes backward, it waits for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import Trainer
from transformers.modeling_outputs import BaseModelOutputWithPast

from rfflow.worker.gangs.passes import Call
from rfflow.worker.training.coroutine import TrainerCoroutine
from rfflow.worker.training.torch_settings import read_torch_settings

_KNOWN = {"input_ids", "attention_mask", "position_ids", "use_cache"}
_FEW = 4
"""A product of fewer rows is computed in another way, and rounds otherwise."""
_OF_THE_RUN = ("compile", "forms")
"""Settings that are no part of how a pass computes."""


@dataclass(frozen=True)
class AtForward:
    """A run waits for its last hidden states."""

    call: Call


@dataclass(frozen=True)
class AtBackward:
    """A run has gone backward down to its last hidden states, and waits for the rest."""

    settings: Mapping[str, Any]


Meeting = AtForward | AtBackward


@dataclass(frozen=True)
class Reply:
    """What a run gets that has waited."""

    hidden: torch.Tensor | None = None
    """Rows x length x hidden; None is for it to compute."""
    random: torch.Tensor | None = None
    """The state of its generator behind the pass."""
    error: BaseException | None = None
    """What it would have raised."""


class Member:
    """Stands on a run's decoder and accelerator while it is in a gang.

    Args:
        coroutine: the run's.
    """

    def __init__(self, coroutine: TrainerCoroutine):
        self._coroutine = coroutine
        trainer: Trainer = coroutine.trainer
        self._accelerator = trainer.accelerator
        self._decoder = trainer.model.get_base_model().get_decoder()
        self._layers = {name: layer for name, layer in self._decoder.named_modules() if isinstance(layer, LoraLinear)}
        self._probe = next(iter(self._layers.values()))
        self._has_leaves = False

    def join(self) -> None:
        """Stop where the others are waited for, from here on."""
        self._forward, self._backward = self._decoder.forward, self._accelerator.backward
        self._decoder.forward = self._on_forward
        self._accelerator.backward = self._on_backward

    def leave(self) -> None:
        """Do everything alone again."""
        for owner, name in ((self._decoder, "forward"), (self._accelerator, "backward")):
            vars(owner).pop(name, None)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained."""
        adapters = [(layer.lora_A, layer.lora_B) for layer in self._layers.values()]
        return [one.weight for pair in adapters for by_name in pair for one in by_name.values()]

    def _on_forward(self, *args: Any, **kwargs: Any) -> Any:
        # Runs that stop in the middle of autocast keep it from forgetting what it has cast; a step changes that.
        torch.clear_autocast_cache()
        call = None if args else self._call(kwargs)
        reply = self._coroutine.meet(AtForward(call)) if call is not None else None
        if call is None or reply is None or (reply.hidden is None and reply.error is None):
            return self._forward(*args, **kwargs)
        if reply.error is not None:
            raise reply.error
        if reply.random is not None:
            _set_random(call.ids.device, reply.random)
        self._has_leaves = self._has_leaves or call.needs_grad
        return BaseModelOutputWithPast(last_hidden_state=reply.hidden)

    def _on_backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self._backward(loss, **kwargs)
        if self._has_leaves:
            self._has_leaves = False
            reply = self._coroutine.meet(AtBackward(_settings()))
            if reply is not None and reply.error is not None:
                raise reply.error

    def _call(self, kwargs: Mapping[str, Any]) -> Call | None:
        """Return what the run asks for, if it asks for nothing unusual."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        ids, mask, positions = (given.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        needs_grad, is_off = torch.is_grad_enabled(), bool(self._probe.disable_adapters)
        if set(given) - _KNOWN or given.get("use_cache") or ids is None or ids.dim() != 2 or ids.numel() < _FEW:
            return None
        if mask is not None and mask.shape != ids.shape:
            return None
        if positions is not None and mask is None:  # several texts may follow each other in one row
            return None
        if needs_grad is is_off or not self._decoder.training:
            return None
        if mask is not None and bool(mask.all()):
            mask = None
        layers = {} if is_off else self._layers
        return Call(ids, mask, positions, layers, needs_grad, _random(ids.device), _settings())


def _settings() -> dict[str, Any]:
    return {name: value for name, value in read_torch_settings().items() if name not in _OF_THE_RUN}


def _random(device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.random.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.random.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
