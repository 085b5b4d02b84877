"""One base, many structures: what is shared, what is a run's own, and what happens when somebody writes to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rfflow.errors import EngineError
from rfflow.training.bases import Base


@pytest.fixture
def base(tiny_model: Path) -> Base:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.requires_grad_(False)
    return Base(model, AutoTokenizer.from_pretrained(tiny_model))


def test_structures_share_the_weights_and_nothing_else(base: Base) -> None:
    """A patched forward, a wrapped layer and an edited config stay with their run."""
    one, two = base.structure(), base.structure()
    assert all(a is b for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(a is b for a, b in zip(one.buffers(), base.model.buffers(), strict=True))
    one.config.pad_token_id = 77
    get_peft_model(one, LoraConfig(r=2, target_modules=["q_proj"]))
    assert two.config.pad_token_id != 77
    assert not any("lora" in name for name, _ in two.named_parameters())


def test_a_copy_shares_nothing(base: Base) -> None:
    copy = base.copy()
    assert all(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    base.check_untouched("run 0")
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_base_parameter_that_a_run_trains_becomes_its_own(base: Base) -> None:
    """LoRA with bias="all", say; tied weights stay tied."""
    model = base.structure()
    shared = model.model.embed_tokens.weight
    model.lm_head.weight = shared
    shared.requires_grad_(True)
    assert base.unshare(model) == 1
    assert model.model.embed_tokens.weight is not shared and model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not shared.requires_grad


def test_writing_to_the_shared_weights_is_found_out(base: Base) -> None:
    base.check_untouched("run 1")
    with torch.no_grad():
        next(base.structure().parameters()).add_(1)
    with pytest.raises(EngineError, match=r"run 1 changed model.embed_tokens.weight of the base model"):
        base.check_untouched("run 1")
