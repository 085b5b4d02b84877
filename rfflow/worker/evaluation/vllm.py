"""Answers by vLLM in this process. Thin, and tried with a stand-in only: nobody has run it on a GPU yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rfflow.errors import ConfigError
from rfflow.evals.prompts import Messages, check_fit
from rfflow.worker.evaluation.replies import Reply


class VLLMGenerator:
    """Answers a batch by ``vllm.LLM.chat``.

    Args:
        model: as vLLM takes it: a hub name or a folder.
        engines: those of this process, by model and arguments: runs that ask the same share one.
        adapter: a folder with a LoRA adapter that ``save_pretrained`` wrote.
        batch_size: how many prompts it is given at a time; it batches them itself as there is memory.
        max_tokens: the longest answer.
        sampling: other arguments of ``vllm.SamplingParams``.
        kwargs: arguments of ``vllm.LLM``.
    """

    def __init__(
        self,
        model: str,
        engines: dict[str, Any],
        adapter: str | None = None,
        batch_size: int = 64,
        max_tokens: int = 64,
        sampling: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        try:
            import vllm
        except ImportError as error:
            raise ConfigError(
                "generator=vllm wants the package vllm, and a GPU: pip install 'rfflow[vllm]'."
            ) from error
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"generator.{name} is {value!r}. Allowed: a whole number from 1 up.")
        self.batch_size = batch_size
        self._max_tokens = max_tokens
        given = {"enable_lora": True, **kwargs} if adapter else kwargs
        key = repr((model, sorted(given.items(), key=str)))
        try:
            self._sampling = vllm.SamplingParams(**{"temperature": 0.0, **(sampling or {}), "max_tokens": max_tokens})
            if key not in engines:
                engines[key] = vllm.LLM(model=model, **given)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(f"generator: vLLM cannot be made: {type(error).__name__}: {error}") from error
        self._engine = engines[key]
        self._lora = None if adapter is None else _request(adapter, engines)

    def check(self, prompts: Sequence[Messages], names: Sequence[str]) -> None:
        """Check that every prompt, and an answer, fits into the model's context.

        Raises:
            ConfigError: naming the longest.
        """
        tokenizer, context = self._engine.get_tokenizer(), self._engine.model_config.max_model_len
        lengths = [
            len(tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False)) for each in prompts
        ]
        check_fit(lengths, names, self._max_tokens, context)

    def generate(self, prompts: Sequence[Messages]) -> list[Reply]:
        """Answer a batch."""
        began = time.monotonic()
        made = self._engine.chat(list(prompts), self._sampling, use_tqdm=False, lora_request=self._lora)
        seconds = (time.monotonic() - began) / len(prompts)
        return [
            Reply(
                each.outputs[0].text,
                {"prompt_tokens": len(each.prompt_token_ids), "completion_tokens": len(each.outputs[0].token_ids)},
                latency=seconds,
            )
            for each in made
        ]


def _request(adapter: str, engines: dict[str, Any]) -> Any:
    """Return how vLLM is told of an adapter: each by a number of its own."""
    from vllm.lora.request import LoRARequest

    numbers = engines.setdefault("adapters", {})
    number = numbers.setdefault(adapter, len(numbers) + 1)
    return LoRARequest(adapter, number, adapter)
