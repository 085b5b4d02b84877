"""What goes through the trunk of a base model at once: the rows of several runs, flat, one run behind the other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Call:
    """What a run asks of the decoder of its model."""

    ids: torch.Tensor
    """Rows x length."""
    mask: torch.Tensor | None
    """The same; ones where a token is. None where all are tokens, as attention takes it then."""
    positions: torch.Tensor | None
    """The same, or one row for all."""
    layers: Mapping[str, Any]
    """The adapted layers by their names in the decoder, as PEFT made them; none where the adapter is off."""
    needs_grad: bool
    random: torch.Tensor
    """The state of the generator from which the run's dropout draws."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """torch's own settings, precision and autocast among them, as the run has them."""

    @property
    def kind(self) -> Hashable:
        """Calls of one kind may go together."""
        return self.needs_grad, bool(self.layers), repr(sorted(self.settings.items()))

    @property
    def tokens(self) -> int:
        """How many rows of a matrix it is."""
        return self.ids.numel()


@dataclass(frozen=True)
class Block:
    """Rows of one length that attend together, each to itself."""

    rows: int
    length: int
    mask: torch.Tensor | None


class Pass:
    """Calls on their way through a trunk.

    Args:
        calls: those of one length side by side, see :func:`in_order`.
    """

    def __init__(self, calls: Sequence[Call]):
        self.calls = tuple(calls)
        self.sizes = [call.tokens for call in calls]
        """The tokens of each."""
        self.blocks = _blocks(calls)
        self.generators = [_generator(call) for call in calls]
        """What the dropout of each draws from."""
        self.made: dict[Hashable, torch.Tensor] = {}
        """What layers have made that other layers need as well."""

    @property
    def ids(self) -> torch.Tensor:
        """All tokens in one row."""
        return torch.cat([call.ids.reshape(-1) for call in self.calls])[None]

    @property
    def positions(self) -> torch.Tensor:
        """Their positions, likewise."""
        return torch.cat([_positions(call) for call in self.calls])[None]


def in_order(calls: Sequence[Call]) -> list[int]:
    """Return the indices of calls, those next to each other that can attend together."""
    return sorted(range(len(calls)), key=lambda index: (calls[index].ids.shape[1], calls[index].mask is not None))


def _blocks(calls: Sequence[Call]) -> list[Block]:
    blocks: list[Block] = []
    for call in calls:
        rows, length = call.ids.shape
        last = blocks[-1] if blocks else None
        if last is None or last.length != length or (last.mask is None) != (call.mask is None):
            blocks.append(Block(rows, length, call.mask))
        else:
            mask = None if last.mask is None or call.mask is None else torch.cat([last.mask, call.mask])
            blocks[-1] = Block(last.rows + rows, length, mask)
    return blocks


def _positions(call: Call) -> torch.Tensor:
    rows, length = call.ids.shape
    if call.positions is None:
        return torch.arange(length, device=call.ids.device).repeat(rows)
    return call.positions.expand(rows, length).reshape(-1)


def _generator(call: Call) -> torch.Generator:
    generator = torch.Generator(call.ids.device)
    generator.set_state(call.random)
    return generator
