"""``engine.fusion=cat`` and ``grouped``: the same sums in fewer products, which round otherwise and mean the same."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rfflow.config.spec import RunSpec
from rfflow.worker.gangs import forms
from rfflow.worker.gangs.forms import FORMS
from rfflow.worker.gangs.passes import Call, Pass
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import run_spec
from tests.worker.gangs.test_mixtures import draw
from tests.worker.gangs.together import prepared, train

OTHERS = [name for name in FORMS if name != "slice"]


def layer(rank: int, inputs: int, outputs: int, dropout: float) -> Any:
    """Return what PEFT's layer has."""
    return SimpleNamespace(
        active_adapters=["default"],
        lora_A={"default": nn.Linear(inputs, rank, bias=False)},
        lora_B={"default": nn.Linear(rank, outputs, bias=False)},
        scaling={"default": 0.5 * rank},
        lora_dropout={"default": nn.Dropout(dropout) if dropout else nn.Identity()},
    )


def computed(form: str, layers: list[Any], sizes: list[int], precision: str) -> list[torch.Tensor]:
    """Return what comes out of a layer, and the gradients of all that went in."""
    torch.manual_seed(7)
    state = torch.Generator().get_state()
    current = Pass([Call(torch.zeros(1, size, dtype=torch.long), None, None, {}, True, state) for size in sizes])
    x = torch.randn(1, sum(sizes), 24, requires_grad=True)
    result = torch.randn(1, sum(sizes), 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = FORMS[form](layers, x, result, current)
    weights = [one.weight for each in layers if each for one in (each.lora_A["default"], each.lora_B["default"])]
    gradients = torch.autograd.grad([found], [x, result, *weights], [torch.randn_like(found)])
    return [found.detach(), *gradients]


@pytest.mark.parametrize("precision", ["full", "autocast"])
@pytest.mark.parametrize("sizes", [[6, 6, 6, 6], [5, 9, 4, 12]], ids=["even", "uneven"])
@pytest.mark.parametrize("form", [*OTHERS, "grouped by a kernel"])
def test_what_comes_out_and_all_gradients_are_those_of_each_run(
    form: str, sizes: list[int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of different ranks, scalings and dropout, and one that has no adapter there."""
    if form == "grouped by a kernel":
        monkeypatch.setattr(forms, "_has_kernel", lambda rows: True)
        form = "grouped"
    layers = [layer(4, 24, 40, 0.3), layer(9, 24, 40, 0.0), None, layer(1, 24, 40, 0.1)]
    expected, seen = (computed(name, layers, sizes, precision) for name in ("slice", form))
    close = 2e-2 if precision == "autocast" else 1e-5
    for one, other in zip(expected, seen, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= close * one.norm()


def test_grouped_keeps_what_is_no_number_to_its_run() -> None:
    """Also in the gradients, whose sums go over the rows."""
    layers = [layer(4, 24, 40, 0.0) for _ in range(2)]
    clean = computed("grouped", layers, [6, 6], "full")
    layers[1].lora_B["default"].weight.data.fill_(float("nan"))
    spoilt = computed("grouped", layers, [6, 6], "full")
    assert all(torch.equal(one, other) for one, other in zip(clean[3:5], spoilt[3:5], strict=True))
    assert not spoilt[0][:, 6:].isfinite().any()


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_runs_end_as_alone_but_for_rounding(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, seed: int, form: str
) -> None:
    """Random mixtures, with dropout, accumulation and layers that are computed twice."""
    chance = random.Random(seed)
    specs = [draw(chance, tiny_model, tiny_data) for _ in range(3)]
    with prepared(specs, tmp_path) as sessions:
        together, gang = train(sessions, form=form)
    assert gang.passes >= 2
    for number, one in enumerate(specs):
        differ = apart(together[number], train_alone(one, tmp_path / "alone" / str(number)))
        assert differ <= 1e-4, (number, one)


def test_a_run_that_leaves_the_numbers_takes_nobody_with_it(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """In ``cat``, where it would get into the sums of the others."""
    args = {"max_steps": 5, "per_device_train_batch_size": 2}
    specs: list[RunSpec] = [
        run_spec(tiny_model, tiny_data, args={**args, "learning_rate": rate}, chunks=1, evaluate=False)
        for rate in (1e-3, 2e-3, 4e-3, 8e-3)
    ]
    with prepared(specs, tmp_path) as sessions:
        trained = (one for one in sessions[1].coroutine.trainer.model.parameters() if one.requires_grad)
        next(trained).data.fill_(float("nan"))
        together, gang = train(sessions, form="cat")
    assert gang.passes >= 5
    lost = together[1]
    assert isinstance(lost, Outcome) and any(one.isnan().any() for one in lost.weights.values())
    for number in (0, 2, 3):
        alone = train_alone(specs[number], tmp_path / "alone" / str(number))
        assert apart(together[number], alone) <= 1e-4


def apart(one: Outcome | BaseException, other: Outcome) -> float:
    """Return by how much weights differ at most."""
    assert isinstance(one, Outcome), one
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)
