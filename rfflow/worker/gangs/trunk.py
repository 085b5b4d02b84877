"""The decoder of a base model with the rows of several runs in it: products for all, attention for each by itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rfflow.worker.gangs.layers import GangLinear
from rfflow.worker.gangs.passes import Call, Pass
from rfflow.worker.models.bases import Base

_ATTENTION = "rfflow_gang"
_going: list[Trunk] = []
"""The trunk through which something goes now; attention functions get a layer, and not the trunk."""


class Trunk:
    """A structure of a base model's own, whose linear layers look up who is in the pass.

    Its weights are the base's, so that it takes no memory beside what a pass takes.

    Args:
        base: whose decoder it is.
        form: how adapters are computed, see :mod:`.forms`.
    """

    def __init__(self, base: Base, form: str = "slice"):
        self.form = form
        self._model = base.structure()
        self._decoder: nn.Module = self._model.get_decoder()
        self._attention = str(self._model.config._attn_implementation)
        for module in (self._model, *self._model.modules()):
            if (config := getattr(module, "config", None)) is not None:
                config._attn_implementation = _ATTENTION
        for name, layer in list(self._decoder.named_modules()):
            if type(layer) is nn.Linear:
                parent, _, leaf = name.rpartition(".")
                setattr(self._decoder.get_submodule(parent), leaf, GangLinear(layer, name, self))
        self._layers = [one for one in self._decoder.modules() if isinstance(one, GradientCheckpointingLayer)]
        for one in self._layers:
            one._gradient_checkpointing_func = self._recomputed
        self._decoder.train()
        self.current: Pass | None = None
        """What goes through now."""
        self.trouble = trouble_of(self, base)
        """Why what comes out of it cannot be what comes out of the model alone, if so."""

    def recompute(self, layers: list[bool]) -> None:
        """Say for each layer whether its activations are recomputed; the bits are the same."""
        for one, is_recomputed in zip(self._layers, layers, strict=True):
            one.gradient_checkpointing = is_recomputed

    def forward(self, current: Pass) -> torch.Tensor:
        """Return the last hidden states of all rows: 1 x tokens x hidden."""
        ids = current.ids
        with self._passing(current):
            found = self._decoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=current.positions, use_cache=False
            )
        hidden: torch.Tensor = found.last_hidden_state
        return hidden

    @contextlib.contextmanager
    def _passing(self, current: Pass) -> Iterator[None]:
        before, self.current = self.current, current
        _going.append(self)
        try:
            yield
        finally:
            _going.pop()
            self.current = before

    def _recomputed(self, function: Callable[..., Any], *args: Any) -> Any:
        """Let a layer forget what it has computed; the second time it draws what it drew the first time."""
        current = self.current
        assert current is not None
        before = [generator.get_state() for generator in current.generators]
        times = iter((self._once, self._again))

        def run(*given: Any) -> Any:
            return next(times, self._again)(current, before, function, given)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

    def _once(self, current: Pass, before: list[torch.Tensor], function: Callable[..., Any], given: Any) -> Any:
        return function(*given)

    def _again(self, current: Pass, before: list[torch.Tensor], function: Callable[..., Any], given: Any) -> Any:
        now = [generator.get_state() for generator in current.generators]
        _set(current, before)
        try:
            with self._passing(current):
                return function(*given)
        finally:
            _set(current, now)

    def masks(self, mask_function: Any, device: Any, more: dict[str, Any]) -> list[Any]:
        """Return the mask of each block of rows, as the model would make it for them alone."""
        assert self.current is not None
        make = ALL_MASK_ATTENTION_FUNCTIONS[self._attention]
        return [
            make(
                batch_size=block.rows,
                q_length=block.length,
                kv_length=block.length,
                q_offset=0,
                kv_offset=0,
                mask_function=mask_function,
                attention_mask=None if block.mask is None else block.mask.bool(),
                device=device,
                **more,
            )
            for block in self.current.blocks
        ]

    def attend(self, module: nn.Module, tensors: tuple[torch.Tensor, ...], masks: list[Any], more: Any) -> torch.Tensor:
        """Let every row attend to itself.

        Args:
            module: the layer.
            tensors: queries, keys and values: 1 x heads x tokens x width.
            masks: one a block.
            more: what the layer says besides.

        Returns:
            1 x tokens x heads x width.
        """
        assert self.current is not None
        function = _attention_function(self._attention, module)
        blocks = self.current.blocks
        sizes = [block.rows * block.length for block in blocks]
        found = []
        parts = zip(*(tensor.split(sizes, dim=2) for tensor in tensors), strict=True)
        for block, part, mask in zip(blocks, parts, masks, strict=True):
            rows = (_in_rows(tensor, block.rows, block.length) for tensor in part)
            attended = function(module, *rows, mask, **more)[0]
            found.append(attended.reshape(1, block.rows * block.length, *attended.shape[2:]))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


_TOLERANCE = 0.02
"""Of the largest value: half precision rounds so."""


def trouble_of(trunk: Trunk, base: Base) -> str | None:
    """Try with a few tokens, one row of them padded, whether a trunk computes what the model does."""
    device = next(base.model.parameters()).device
    state = torch.Generator(device).get_state()
    ids = torch.arange(2, 22, device=device)
    first, second = ids[:12].reshape(2, 6), ids[12:].reshape(1, 8)
    mask = torch.ones_like(first)
    mask[0, 4:] = 0
    calls = [Call(first, mask, None, {}, False, state), Call(second, None, None, {}, False, state)]
    decoder = base.structure().get_decoder().train()
    try:
        with torch.no_grad():
            together = trunk.forward(Pass(calls))[0].split([call.tokens for call in calls])
            alone = [decoder(input_ids=one.ids, attention_mask=one.mask, use_cache=False)[0] for one in calls]
    except Exception as error:
        return f"its base does not take rows of several runs ({type(error).__name__}: {error})"
    for part, whole in zip(together, alone, strict=True):
        if (part.view_as(whole) - whole).abs().max() > _TOLERANCE * whole.abs().max():
            return f"{type(decoder).__name__} lets rows change each other"
    return None


def _set(current: Pass, states: list[torch.Tensor]) -> None:
    for generator, state in zip(current.generators, states, strict=True):
        generator.set_state(state)


def _in_rows(tensor: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Turn 1 x heads x tokens x width into rows x heads x length x width, laid out as a model alone has it."""
    _, heads, _, width = tensor.shape
    return tensor.transpose(1, 2).reshape(rows, length, heads, width).transpose(1, 2)


def _attention_function(name: str, module: nn.Module) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return function


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    return _going[-1].attend(module, (query, key, value), attention_mask, more), None


_OF_THE_WHOLE = ("batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "attention_mask")
"""What a mask function is told of the one long row, which is none."""


def _mask(mask_function: Any = None, device: Any = None, **more: Any) -> list[Any]:
    rest = {name: value for name, value in more.items() if name not in _OF_THE_WHOLE}
    return _going[-1].masks(mask_function, device, rest)


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, _mask)
