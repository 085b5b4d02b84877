"""torch's settings are read without moving them, and put back as they were, whatever was done to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rfflow.worker.training.torch_settings import read_torch_settings, set_torch_settings

_TREE = getattr(torch._C, "_get_fp32_precision_getter", None)
pytestmark = pytest.mark.skipif(_TREE is None, reason="this torch has the older names alone")

PLACES = [("generic", "all")] + [(backend, op) for backend in ("cuda", "mkldnn") for op in ("all", "matmul", "conv")]


def attribute(owner: Any, name: str, *values: Any) -> list[Callable[[], None]]:
    return [lambda value=value: setattr(owner, name, value) for value in values]  # type: ignore[misc]


DEEDS = [
    *attribute(torch.backends, "fp32_precision", "tf32", "ieee", "none"),  # as trainer.args.tf32 does
    *attribute(torch.backends.cuda.matmul, "fp32_precision", "tf32", "none"),
    *attribute(torch.backends.cudnn.conv, "fp32_precision", "ieee", "none"),  # type: ignore[attr-defined]
    *attribute(torch.backends.cudnn, "fp32_precision", "tf32"),
    *attribute(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
    *attribute(torch.backends.cudnn, "allow_tf32", True, False),
    *attribute(torch.backends.cuda.matmul, "allow_tf32", True, False),
    *(lambda value=value: torch.set_float32_matmul_precision(value) for value in ("highest", "high", "medium")),  # type: ignore[misc]
]
"""All the ways to set how exactly products are computed, old and new, in which libraries and people do."""


def ask(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except RuntimeError:
        return "refused"  # torch's own answer where old and new ways were mixed


def answers() -> list[Any]:
    """Return all that torch says of it."""
    assert _TREE is not None
    return [
        *(_TREE(*place) for place in PLACES),
        ask(torch.get_float32_matmul_precision),
        ask(lambda: torch.backends.cudnn.allow_tf32),
        ask(lambda: torch.backends.cuda.matmul.allow_tf32),
    ]


@pytest.fixture
def restored() -> Iterator[dict[str, Any]]:
    before = read_torch_settings()
    yield before
    set_torch_settings(before, read_torch_settings())


@pytest.mark.parametrize("seed", range(60))
def test_precision_goes_on_as_if_nobody_else_had_set_it(seed: int, restored: dict[str, Any]) -> None:
    """Whatever mixture of old and new ways was used, and whatever is done next, an inherited value included."""
    chance = random.Random(seed)
    *first, last = chance.choices(DEEDS, k=chance.randint(2, 5))
    at_first = answers()
    for deed in first:
        deed()
    before = answers()
    mine = read_torch_settings()
    assert answers() == before, "looking moves nothing"
    set_torch_settings(restored, mine)
    assert answers() == at_first, "others have what they had"
    chance.choice(DEEDS)()  # another's
    set_torch_settings(mine, read_torch_settings())
    assert answers() == before, "it is found again"
    last()
    after = answers()
    set_torch_settings(restored, read_torch_settings())
    for deed in (*first, last):
        deed()
    assert answers() == after, "and goes on as it would have alone"


def test_an_argument_that_mixes_old_and_new_ways_ends_nothing(restored: dict[str, Any]) -> None:
    """trainer.args.tf32 sets the new way alone, and torch then refuses to tell the old one."""
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert read_torch_settings() != restored
