"""What a model remembers of its modules is what a walk would find, whatever is done to it meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rfflow.worker.training import walks
from rfflow.worker.training.walks import remember_walks
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import train_together


def make(tiny_model: Path, **peft: Any) -> Any:
    """Return an adapter on the tiny model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, **peft))


def base(model: Any) -> Any:
    return model.get_base_model()


def check(model: Any) -> None:
    """Compare every answer with what the classes themselves say."""
    found, counted = list(model.parameters()), type(base(model)).num_parameters
    assert [id(one) for one in found] == [id(one) for one in torch.nn.Module.parameters(model)]
    for given in ({}, {"prefix": "a"}, {"recurse": False}, {"remove_duplicate": False}):
        named, plain = model.named_parameters(**given), torch.nn.Module.named_parameters(model, **given)
        assert [(name, id(one)) for name, one in named] == [(name, id(one)) for name, one in plain], given
    for kwargs in ({}, {"exclude_embeddings": True}, {"only_trainable": True}):
        assert base(model).num_parameters(**kwargs) == counted(base(model), **kwargs), kwargs
    for mode in (True, False, True, True):
        assert model.train(mode) is model
        assert {module.training for module in model.modules()} == {mode}


def freeze(model: Any) -> None:
    next(parameter for parameter in model.parameters() if parameter.requires_grad).requires_grad_(False)


def shrink(model: Any) -> None:
    layer = base(model).model.layers[0].self_attn.q_proj.lora_A["default"]
    layer.weight.data = layer.weight.data[:2].clone()


def rename(model: Any) -> None:
    adapters = base(model).model.layers[0].self_attn.q_proj.lora_A
    adapters["other"] = adapters.pop("default")


CHANGES: dict[str, Callable[[Any], object]] = {
    "another adapter": lambda model: model.add_adapter("second", LoraConfig(r=2, target_modules=["k_proj"])),
    "a layer less": lambda model: base(model).model.layers.pop(1),
    "another head": lambda model: base(model).set_output_embeddings(torch.nn.Linear(64, 7)),
    "another weight": lambda model: base(model).model.norm.register_parameter(
        "weight", torch.nn.Parameter(torch.ones(3))
    ),
    "a weight frozen": freeze,
    "a layer of another name": rename,
    "a weight of another size": shrink,
    "a part told to evaluate": lambda model: base(model).model.layers[0].eval(),
    "merged": lambda model: model.merge_adapter(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_noticed(change: Callable[[Any], object], tiny_model: Path) -> None:
    model = make(tiny_model)
    remember_walks(model)
    check(model)
    change(model)
    check(model)


def test_a_layer_that_does_more_than_set_its_mode_is_told_each_time(tiny_model: Path) -> None:
    """DoRA's forget what they have computed."""
    model = make(tiny_model, use_dora=True)
    remember_walks(model)
    model.train()
    (layer, *_) = (module for module in model.modules() if hasattr(module, "_dora_cache"))
    layer._dora_cache["weight-norm"] = torch.ones(1)
    model.train()
    assert not layer._dora_cache


def test_nothing_is_walked_that_stands(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time costs no walk."""
    model = make(tiny_model)
    remember_walks(model)
    model.zero_grad()
    model.train()
    list(model.named_parameters())
    base(model).num_parameters(exclude_embeddings=True)
    walk = torch.nn.Module.named_modules
    seen: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "named_modules", lambda self, *given: seen.append(type(self).__name__) or walk(self, *given)
    )
    for _ in range(3):
        model.zero_grad()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.train()
        list(model.named_parameters())
        base(model).num_parameters(exclude_embeddings=True)
    assert not seen


def test_no_boundary_walks_a_model(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Neither the run's, to find its weights and save them, nor the base's, to see that nobody has changed it."""
    walked = Counter[int]()
    walk = torch.nn.Module.named_modules

    def named_modules(self: torch.nn.Module, memo: Any = None, *given: Any, **more: Any) -> Any:
        walked[chunks] += memo is None
        return walk(self, memo, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "named_modules", named_modules)
        for chunks in (5, 15):
            spec = run_spec(tiny_model, tiny_data, chunks=chunks, evaluate=False, args={"max_steps": 14})
            runs, _ = train_together([spec, spec], tmp_path / str(chunks))
            assert len(runs[0].chunks) > 2
    assert walked[15] == walked[5] > 0


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"]
)
def test_a_copy_answers_for_itself(duplicate: Callable[[Any], Any], tiny_model: Path) -> None:
    """TRL copies a model to have a reference, and callbacks do to average weights."""
    model = make(tiny_model)
    remember_walks(model)
    model.eval()
    other = duplicate(model)
    assert not {id(one) for one in other.parameters()} & {id(one) for one in model.parameters()}
    other.train()
    assert not model.training and {module.training for module in other.modules()} == {True}
    check(other)
    check(copy.deepcopy(other))


def test_it_keeps_no_model_alive(tiny_model: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    remember_walks(model)
    list(model.parameters())
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_run_trains_without_walking(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """No step tells a layer its mode that has it already; that shows that a run's model remembers."""
    told: list[bool] = []

    def train(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        told.append(mode)
        return torch.nn.Module.train(self, mode)

    spec = run_spec(tiny_model, tiny_data, evaluate=False, args={"max_steps": 8})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Dropout, "train", train)
        patch.setattr(walks, "_PLAIN_TRAIN", (train, *walks._PLAIN_TRAIN))
        train_together([spec], tmp_path)
    layers = 4  # two adapters on two layers
    assert len(told) <= 3 * layers, "told in every step"
