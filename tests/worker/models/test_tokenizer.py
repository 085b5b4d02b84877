"""Runs share the bulk of a tokenizer, and never notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets.fingerprint import Hasher
from jinja2.exceptions import SecurityError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rfflow.errors import EngineError
from rfflow.worker.models.bases import Base
from rfflow.worker.models.tokenizer import SharedTokenizer
from tests.support.tiny import make_tokenizer


@pytest.fixture
def shared(tiny_model: Path) -> SharedTokenizer:
    return SharedTokenizer(AutoTokenizer.from_pretrained(tiny_model))


def test_settings_are_each_runs_own_and_the_vocabulary_is_shared(shared: SharedTokenizer) -> None:
    one, two = shared.copy(), shared.copy()
    one.pad_token, one.padding_side, one.chat_template = one.eos_token, "left", "{{ 1 }}"
    assert two.pad_token != two.eos_token and two.padding_side == "right" and two.chat_template != "{{ 1 }}"
    assert one._tokenizer is two._tokenizer
    assert not shared.part()


@pytest.mark.parametrize("change", ["token", "known token", "post processor"])
def test_a_run_that_changes_the_vocabulary_is_alone_with_it(shared: SharedTokenizer, change: str) -> None:
    """Whoever came before or comes after tokenizes as if it had never been there."""
    before, changing = shared.copy(), shared.copy()
    text = "a plus <b> c"
    expected = before(text).input_ids
    if change == "token":
        changing.add_tokens(["<b>"])
    elif change == "known token":
        changing.add_special_tokens({"additional_special_tokens": ["a"]})
    else:
        from tokenizers.processors import TemplateProcessing

        changing._tokenizer.post_processor = TemplateProcessing(single="$A $A", special_tokens=[])
    assert shared.part()
    after = shared.copy()
    assert not shared.part()
    if change != "known token":
        assert changing(text).input_ids != expected
    for tokenizer in (before, after):
        assert tokenizer(text).input_ids == expected
        assert len(tokenizer) == len(make_tokenizer())
        assert tokenizer._tokenizer is not changing._tokenizer


def test_what_a_call_cuts_and_fills_is_not_in_the_next_runs_fingerprint(shared: SharedTokenizer) -> None:
    """Otherwise `datasets` would tokenize the same rows again for every run."""
    fingerprint = Hasher.hash(shared.copy())
    shared.copy()(["a", "abc"], truncation=True, max_length=2, padding=True)
    assert Hasher.hash(shared.copy()) == fingerprint


def test_changing_it_in_the_midst_of_training_is_found_out(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = Base(AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model))
    tokenizer = base.tokenizer()
    base.part_tokenizer()
    base.check_untouched("Run 1")
    tokenizer.add_tokens(["<b>"])
    with pytest.raises(EngineError, match="Run 1 changed the tokenizer"):
        base.check_untouched("Run 1")


def test_tokenizers_of_another_kind_are_copied_whole() -> None:
    class Slow(PreTrainedTokenizerBase):
        words: list[str] = []

        def __init__(self) -> None:
            self.words = []

    shared = SharedTokenizer(Slow())
    one, two = shared.copy(), shared.copy()
    one.words.append("b")
    assert two.words == [] and not shared.part()


def test_a_chat_template_runs_no_code() -> None:
    """It comes with whatever model is named; docs/security.md relies on the sandbox of transformers."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
