"""The generator for vLLM, on a stand-in: there is none here."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.worker.evaluation.vllm import VLLMGenerator

MESSAGES = [[{"role": "user", "content": text}] for text in ("one", "two words")]


class LLM:
    """As much of vLLM's class as is used."""

    made: list[dict[str, Any]] = []
    model_config = types.SimpleNamespace(max_model_len=8)

    def __init__(self, model: str, **kwargs: Any):
        if "typo" in kwargs:
            raise TypeError("unexpected keyword argument 'typo'")
        LLM.made.append({"model": model, **kwargs})

    def get_tokenizer(self) -> Any:
        def ids(messages: Any, add_generation_prompt: bool, return_dict: bool) -> list[str]:
            return str(messages[-1]["content"]).split()

        return types.SimpleNamespace(apply_chat_template=ids)

    def chat(self, messages: Any, sampling: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.asked = sampling, lora_request
        out = [types.SimpleNamespace(text=f"on {each[-1]['content']}", token_ids=[1, 2]) for each in messages]
        return [types.SimpleNamespace(outputs=[each], prompt_token_ids=[1, 2, 3]) for each in out]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    LLM.made = []
    requests = types.SimpleNamespace(LoRARequest=lambda *given: given)
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **given: given))
    monkeypatch.setitem(sys.modules, "vllm.lora", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", requests)


def test_it_answers_a_batch_and_shares_the_engine() -> None:
    engines: dict[str, Any] = {}
    generator = VLLMGenerator("small", engines, max_tokens=4, sampling={"top_p": 0.9}, seed=1)
    replies = generator.generate(MESSAGES)
    assert [(each.text, each.usage) for each in replies] == [
        (f"on {text}", {"prompt_tokens": 3, "completion_tokens": 2}) for text in ("one", "two words")
    ]
    assert generator._engine.asked == ({"temperature": 0.0, "top_p": 0.9, "max_tokens": 4}, None)
    VLLMGenerator("small", engines, seed=1)
    assert LLM.made == [{"model": "small", "seed": 1}]
    with_adapter = VLLMGenerator("small", engines, adapter="a", seed=1)
    other = VLLMGenerator("small", engines, adapter="b", seed=1)
    assert LLM.made[1:] == [{"model": "small", "enable_lora": True, "seed": 1}], "one for all adapters"
    assert (with_adapter._lora, other._lora) == (("a", 1, "a"), ("b", 2, "b"))


def test_a_prompt_that_is_too_long_is_refused() -> None:
    generator = VLLMGenerator("small", {}, max_tokens=7)
    with pytest.raises(ConfigError, match=r"1 of 2 prompts are too long .* question 'b' has 2 tokens.*context of 8"):
        generator.check(MESSAGES, ["a", "b"])
    generator.check(MESSAGES[:1], ["a"])


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"vLLM cannot be made: TypeError: .*'typo'"):
        VLLMGenerator("small", {}, typo=1)
    with pytest.raises(ConfigError, match=r"generator\.max_tokens is 0"):
        VLLMGenerator("small", {}, max_tokens=0)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"wants the package vllm, and a GPU: pip install 'rfflow\[vllm\]'"):
        VLLMGenerator("small", {})
