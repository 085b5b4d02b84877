"""Answers by a model on the device: the base that runs share, with an adapter or without."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import GenerationConfig

from rfflow.config.spec import Node
from rfflow.errors import ConfigError, OpError
from rfflow.evals.prompts import Messages, check_fit
from rfflow.worker.evaluation.replies import Reply
from rfflow.worker.models.bases import Base
from rfflow.worker.training.answers import check_generation_arguments
from rfflow.worker.training.build import build_peft_config, rewrites_base
from rfflow.worker.training.warm_start import load_weights


class TransformersGenerator:
    """Answers in batches by ``generate`` of transformers.

    Args:
        base: the model of the section ``model``, shared with all runs that have the same.
        adapter: a folder with an adapter, or the directory of a run that has trained one.
        batch_size: how many prompts at a time.
        max_new_tokens: the longest answer.
        seed: what answers that are drawn (``do_sample``) begin from.
        kwargs: arguments of ``transformers.GenerationConfig``.
    """

    def __init__(
        self,
        base: Base,
        adapter: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 32,
        seed: int = 42,
        **kwargs: Any,
    ):
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"generator.{name} is {value!r}. Allowed: a whole number from 1 up.")
        check_generation_arguments(kwargs, "generator")
        self.batch_size = batch_size
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._tokenizer = base.tokenizer()
        self._model: Any = base.structure()
        if adapter is not None:
            self._model = _with_adapter(self._model, Path(adapter))
        self._model.eval()
        pad = self._tokenizer.pad_token_id
        eos = self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        self._pad = pad if pad is not None else self._tokenizer.eos_token_id or 0
        self._config = GenerationConfig(
            **{"max_new_tokens": max_new_tokens, "pad_token_id": self._pad, "eos_token_id": eos, "do_sample": False},
            **kwargs,
        )
        self._ends = set(eos) if isinstance(eos, list) else {eos}

    def take_weights(self, peft: Node, weights: Mapping[str, torch.Tensor], run: int) -> None:
        """Answer from now on with an adapter that a run has trained.

        Args:
            peft: what adapter that is.
            weights: those it had at its last boundary, by name.
            run: its number.

        Raises:
            OpError: if the adapter has other weights, or its method rewrites its base.
        """
        if not isinstance(self._model, PeftModel):
            config = build_peft_config(peft)
            if rewrites_base(config):
                raise OpError(
                    f"peft.init_lora_weights={config.init_lora_weights} rewrites the base, which all evaluations share."
                )
            self._model = get_peft_model(self._model, config)
        load_weights(self._model, weights, run)
        self._model.eval()

    def check(self, prompts: Sequence[Messages], names: Sequence[str]) -> None:
        """Check that every prompt, and an answer, fits into the model's context.

        Raises:
            ConfigError: naming the longest.
        """
        context = getattr(self._model.config, "max_position_embeddings", None)
        if not isinstance(context, int):
            return
        check_fit([len(self._ids(prompt)) for prompt in prompts], names, self._max_new_tokens, context)

    def generate(self, prompts: Sequence[Messages]) -> list[Reply]:
        """Answer a batch."""
        began = time.monotonic()
        rows = [self._ids(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        device = self._model.get_input_embeddings().weight.device
        torch.manual_seed(self._seed)
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._config
            )[:, width:].tolist()
        texts = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        seconds = (time.monotonic() - began) / len(rows)
        return [
            Reply(text, {"prompt_tokens": len(row), "completion_tokens": self._length(out)}, latency=seconds)
            for row, out, text in zip(rows, made, texts, strict=True)
        ]

    def _length(self, out: Sequence[int]) -> int:
        return next((place + 1 for place, token in enumerate(out) if token in self._ends), len(out))

    def _ids(self, messages: Messages) -> list[int]:
        if not self._tokenizer.chat_template:  # a base model continues a text
            return list(self._tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"])
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_adapter(model: Any, path: Path) -> Any:
    """Return the model with an adapter that ``save_pretrained`` has written."""
    places = [path, path / "final", path / "checkpoints" / "final"]
    place = next((each for each in places if (each / "adapter_config.json").is_file()), None)
    if place is None:
        raise ConfigError(
            f"generator.adapter is {str(path)!r}, and there is no adapter in it: neither adapter_config.json nor "
            "checkpoints/final/adapter_config.json. Give a run's directory, or a folder that save_pretrained wrote."
        )
    try:
        return PeftModel.from_pretrained(model, str(place), autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        raise ConfigError(f"generator.adapter: {place} does not fit the model: {error}.") from error
