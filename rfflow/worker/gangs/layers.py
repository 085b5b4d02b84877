"""One linear layer of a base model under the adapters of several runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from rfflow.worker.gangs.passes import Pass

if TYPE_CHECKING:
    from rfflow.worker.gangs.trunk import Trunk


class GangLinear(nn.Module):
    """A product with the base's weight for all rows, and a run's adapter for its own.

    Rows are computed in the operations, shapes and order in which PEFT's layer computes them for the run alone, and so
    are the sums of their gradients: a product of at least four rows has the same bits in every row, however many others
    are beside it.

    Args:
        base: the layer.
        name: its name in the decoder.
        trunk: knows what goes through.
    """

    def __init__(self, base: nn.Linear, name: str, trunk: Trunk):
        super().__init__()
        self.base = base
        self._name = name
        self._trunk = (trunk,)  # in a tuple, or it would be a part of this module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute all rows.

        Args:
            x: 1 x tokens x inputs.

        Returns:
            1 x tokens x outputs.
        """
        result: torch.Tensor = self.base(x)
        current = self._trunk[0].current
        assert current is not None
        layers = [call.layers.get(self._name) for call in current.calls]
        if not any(layer is not None for layer in layers):
            return result
        parts = zip(layers, x.split(current.sizes, dim=1), result.split(current.sizes, dim=1), strict=True)
        rows = [
            part if layer is None else part_of_run(layer, given, part, current, index)
            for index, (layer, given, part) in enumerate(parts)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def part_of_run(layer: Any, x: torch.Tensor, result: torch.Tensor, current: Pass, index: int) -> torch.Tensor:
    """Add a run's adapter to its rows, as PEFT's layer does."""
    key = layer.active_adapters[0]
    down, up = layer.lora_A[key].weight, layer.lora_B[key].weight
    x = dropped(layer.lora_dropout[key], x.to(down.dtype), current.generators[index])
    return (result + F.linear(F.linear(x, down), up) * layer.scaling[key]).to(result.dtype)


def dropped(dropout: nn.Module, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return what a dropout layer would, drawing from a generator of the run's own."""
    p = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    if p == 0:
        return x
    if x.device.type == "cpu":
        return x * torch.empty_like(x).bernoulli_(1 - p, generator=generator).div_(1 - p)
    return _dropped_on_device(p, x, generator)


def _dropped_on_device(p: float, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same where the kernel draws from the device's only generator."""
    device: Any = torch.get_device_module(x.device)
    before = device.get_rng_state(x.device)
    device.set_rng_state(generator.get_state(), x.device)
    try:
        return F.dropout(x, p, training=True)
    finally:
        generator.set_state(device.get_rng_state(x.device))
        device.set_rng_state(before, x.device)
