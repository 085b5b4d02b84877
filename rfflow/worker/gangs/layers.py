"""One linear layer of a base model under the adapters of several runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from rfflow.worker.gangs.forms import FORMS, add_by_slices

if TYPE_CHECKING:
    from rfflow.worker.gangs.trunk import Trunk


class GangLinear(nn.Module):
    """A product with the base's weight for all rows, and a run's adapter for its own.

    A product of at least four rows has the same bits in every row, however many others are beside it.

    Args:
        base: the layer.
        name: its name in the decoder.
        trunk: knows what goes through, and in which form.
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
        trunk, current = self._trunk[0], self._trunk[0].current
        assert current is not None
        layers = [call.layers.get(self._name) for call in current.calls]
        if not any(layer is not None for layer in layers):
            return result
        # A run that is left alone in a pass has the bits that it has alone.
        add = add_by_slices if len(layers) == 1 else FORMS[trunk.form]
        return add(layers, x, result, current)
