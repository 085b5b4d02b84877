"""How the adapters of several runs are computed beside the product that all of them share.

``slice`` computes each for itself, in the operations, shapes and order of PEFT's layer, so that a run's bits are those
that it has alone. The others are the same sums with fewer, larger products, which round in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rfflow.worker.gangs.passes import Pass

Layers = Sequence[Any]
"""PEFT's layer of each run, or None where it has no adapter there."""

_MULTIPLE = 8
"""Ranks are padded to a multiple of it: kernels for half precision want rows of 16 bytes."""


def add_by_slices(layers: Layers, x: torch.Tensor, result: torch.Tensor, current: Pass) -> torch.Tensor:
    """Add each adapter to its rows.

    Args:
        layers: one a run.
        x: what goes into the layer: 1 x tokens x inputs.
        result: what the base makes of it: 1 x tokens x outputs.
        current: whose rows these are.
    """
    if any(layer is None for layer in layers):
        return _add_to_some(layers, x, result, current)
    adapters = [_parts(layer) for layer in layers]
    rows = _all_dropped(layers, x.to(adapters[0][0].dtype), current).split(current.sizes, dim=1)
    found = [F.linear(F.linear(part, one[0]), one[1]) for part, one in zip(rows, adapters, strict=True)]
    scalings = [one[2] for one in adapters]
    if len(set(scalings)) == 1:
        return (result + _together(found) * scalings[0]).to(result.dtype)
    return (result + _together([part * scaling for part, scaling in zip(found, scalings, strict=True)])).to(
        result.dtype
    )


def _add_to_some(layers: Layers, x: torch.Tensor, result: torch.Tensor, current: Pass) -> torch.Tensor:
    """Do the same where the rows of some stay as they are: adding a nought would not leave every bit of them."""
    parts = zip(layers, x.split(current.sizes, dim=1), result.split(current.sizes, dim=1), strict=True)
    return _together(
        [
            part if layer is None else _part_of_run(layer, given, part, current, index)
            for index, (layer, given, part) in enumerate(parts)
        ]
    )


def _part_of_run(layer: Any, x: torch.Tensor, result: torch.Tensor, current: Pass, index: int) -> torch.Tensor:
    """Add a run's adapter to its rows, as PEFT's layer does."""
    down, up, scaling, dropout = _parts(layer)
    x = dropped(dropout, x.to(down.dtype), current.generators[index])
    return (result + F.linear(F.linear(x, down), up) * scaling).to(result.dtype)


def _together(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=1)


def add_side_by_side(layers: Layers, x: torch.Tensor, result: torch.Tensor, current: Pass) -> torch.Tensor:
    """Add all adapters by two products, with their ranks side by side; arguments as for :func:`add_by_slices`.

    Between the two a mask leaves each row what is its run's. What is no number in one run gets into the sums of the
    others all the same: nought times it is none either. See :data:`MIXING`.
    """
    adapters = [(index, *_parts(layer)) for index, layer in enumerate(layers) if layer is not None]
    down = torch.cat([one[1] for one in adapters])
    up = torch.cat([one[2] for one in adapters], dim=1)
    rows = _all_dropped(layers, x.to(down.dtype), current)
    ranks = tuple((index, len(one), float(scaling)) for index, one, _, scaling, _ in adapters)
    key = "mask", ranks, down.dtype
    if key not in current.made:
        current.made[key] = _mask(ranks, current.sizes, down)
    narrow = F.linear(rows, down) * current.made[key]
    return (result + F.linear(narrow.to(down.dtype), up)).to(result.dtype)


def _mask(ranks: Sequence[tuple[int, int, float]], sizes: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Return each run's scaling where its rows and its ranks meet, and noughts elsewhere: tokens x ranks."""
    mask = like.new_zeros(sum(sizes), sum(rank for _, rank, _ in ranks))
    at = 0
    for index, rank, scaling in ranks:
        first = sum(sizes[:index])
        mask[first : first + sizes[index], at : at + rank] = scaling
        at += rank
    return mask


def add_grouped(layers: Layers, x: torch.Tensor, result: torch.Tensor, current: Pass) -> torch.Tensor:
    """Add all adapters by two products of groups, their ranks padded to one; arguments as for :func:`add_by_slices`.

    Nothing of a run gets into the sums of another.
    """
    dtype = next(_parts(layer)[0].dtype for layer in layers if layer is not None)
    rank = max(len(_parts(layer)[0]) for layer in layers if layer is not None)
    rank = -(-rank // _MULTIPLE) * _MULTIPLE
    shapes = (rank, x.shape[-1]), (result.shape[-1], rank)
    noughts = [x.new_zeros(shape, dtype=dtype) for shape in shapes]
    down = torch.stack([noughts[0] if layer is None else _padded(_parts(layer)[0], shapes[0]) for layer in layers])
    up = torch.stack([noughts[1] if layer is None else _padded(_parts(layer)[1], shapes[1]) for layer in layers])
    rows = _all_dropped(layers, x.to(dtype), current)[0]
    scalings = tuple(0.0 if layer is None else float(_parts(layer)[2]) for layer in layers)
    key = "scalings", scalings, dtype
    if key not in current.made:
        made = torch.tensor(scalings, dtype=dtype, device=x.device)
        current.made[key] = made.repeat_interleave(torch.tensor(current.sizes, device=x.device))[:, None]
    found = _product(_product(rows, down, current), up, current) * current.made[key]
    return (result + found[None]).to(result.dtype)


def _product(rows: torch.Tensor, weights: torch.Tensor, current: Pass) -> torch.Tensor:
    """Return the product of each run's rows with its own weights: tokens x outputs.

    Args:
        rows: of all: tokens x inputs.
        weights: runs x outputs x inputs.
        current: whose rows these are.
    """
    sizes = current.sizes
    if len(set(sizes)) == 1:
        return torch.bmm(rows.view(len(sizes), sizes[0], -1), weights.mT).flatten(0, 1)
    if _has_kernel(rows):
        if "ends" not in current.made:
            current.made["ends"] = torch.tensor(sizes, device=rows.device).cumsum(0).to(torch.int32)
        dtype = torch.get_autocast_dtype(rows.device.type) if _is_autocast(rows) else rows.dtype
        product: torch.Tensor = F.grouped_mm(rows.to(dtype), weights.to(dtype).mT, offs=current.made["ends"])
        return product
    if "place" not in current.made:  # where a row is, when each run has as many as the longest
        longest = max(sizes)
        places = [torch.arange(size) + index * longest for index, size in enumerate(sizes)]
        current.made["place"] = torch.cat(places).to(rows.device)
    place, longest = current.made["place"], max(sizes)
    padded = rows.new_zeros(len(sizes) * longest, rows.shape[-1]).index_copy(0, place, rows)
    return torch.bmm(padded.view(len(sizes), longest, -1), weights.mT).flatten(0, 1)[place]


def _has_kernel(rows: torch.Tensor) -> bool:
    """Whether torch multiplies groups of different sizes by one kernel, where these rows are."""
    if rows.device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    dtype = torch.get_autocast_dtype("cuda") if _is_autocast(rows) else rows.dtype
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def _is_autocast(rows: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(rows.device.type)


def _padded(weight: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return F.pad(weight, (0, shape[1] - weight.shape[1], 0, shape[0] - weight.shape[0]))


def _parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float, nn.Module]:
    """Return the two weights of PEFT's layer, rank x inputs and outputs x rank, its scaling and its dropout."""
    key = layer.active_adapters[0]
    return layer.lora_A[key].weight, layer.lora_B[key].weight, layer.scaling[key], layer.lora_dropout[key]


def _all_dropped(layers: Layers, x: torch.Tensor, current: Pass) -> torch.Tensor:
    """Return the rows with each run's dropout."""
    dropouts = [nn.Identity() if layer is None else _parts(layer)[3] for layer in layers]
    shares = [one.p if isinstance(one, nn.Dropout) else 0.0 for one in dropouts]
    if not any(shares):
        return x
    if x.device.type != "cpu":
        parts = zip(dropouts, x.split(current.sizes, dim=1), current.generators, strict=True)
        return _together([dropped(one, part, generator) for one, part, generator in parts])
    noise = torch.empty_like(x)
    for p, part, generator in zip(shares, noise.split(current.sizes, dim=1), current.generators, strict=True):
        if p:
            part.bernoulli_(1 - p, generator=generator).div_(1 - p)
        else:
            part.fill_(1)
    return x * noise


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


FORMS: dict[str, Callable[[Layers, torch.Tensor, torch.Tensor, Pass], torch.Tensor]] = {
    "slice": add_by_slices,
    "cat": add_side_by_side,
    "grouped": add_grouped,
}
MIXING = {"cat"}
"""In which what is no number in one run spoils the others in the same pass; whoever uses them has to look."""
