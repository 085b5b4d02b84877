"""Texts become vectors: the last hidden states of a model, pooled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rfflow.config.spec import ModelSpec
from rfflow.errors import ConfigError
from rfflow.worker.models.bases import Base, Bases

log = logging.getLogger(__name__)

POOLING = ("mean", "cls", "last")


def load_model(bases: Bases, model: Mapping[str, Any], where: str, **kwargs: Any) -> Base:
    """Return the model that a section like ``model`` names, shared with all who name the same.

    Raises:
        ConfigError: if it has no name, or cannot be loaded.
    """
    given = {key: value for key, value in model.items() if value is not None}
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.name is {name!r}. Give what model.name takes: a hub name, a folder, pkg://...")
    return bases.get(ModelSpec(name, given.pop("tokenizer", None), {**given, **kwargs}, where=where))


def check_count(value: Any, where: str) -> None:
    """Raise :class:`ConfigError` unless it is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where} is {value!r}. Allowed: a whole number from 1 up.")


def longest_input(tokenizer: Any, config: Any, asked: int | None, where: str) -> int | None:
    """Return how many tokens a model reads at a time, or fewer where that was asked for; ``None`` is no limit.

    Raises:
        ConfigError: if more was asked for.
    """
    said = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    limits = [each for each in said if isinstance(each, int) and 0 < each < 10**9]
    if asked is None:
        return min(limits, default=None)
    check_count(asked, where)
    if limits and asked > min(limits):
        raise ConfigError(f"{where} is {asked}, and the model reads {min(limits)} tokens at most.")
    return asked


class Embedder:
    """Embeds texts by one model.

    Args:
        base: any model of transformers that has hidden states: an encoder, a causal one, the encoder of one that has
            both.
        pooling: what of a text's hidden states: their ``mean``, the first (``cls``) or the ``last``.
        batch_size: how many texts at a time.
        max_length: tokens of a text, behind which it is cut; ``None`` is what the model reads at most.
        where: where this stands in the configuration.
    """

    def __init__(
        self,
        base: Base,
        pooling: str = "mean",
        batch_size: int = 32,
        max_length: int | None = None,
        where: str = "retriever",
    ):
        if pooling not in POOLING:
            raise ConfigError(f"{where}.pooling is {pooling!r}. Allowed: {', '.join(POOLING)}.")
        check_count(batch_size, f"{where}.batch_size")
        self._tokenizer = base.tokenizer()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        whole: Any = base.structure()
        self._model = whole.get_encoder() if whole.config.is_encoder_decoder else whole.base_model
        self._model.eval()
        self.max_length = longest_input(self._tokenizer, whole.config, max_length, f"{where}.max_length")
        self._pooling = pooling
        self._batch_size = batch_size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, [texts, width] in float32, of whatever length they have."""
        rows = self._ids(texts)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # little padding
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            found |= dict(zip(places, self._pooled([rows[place] for place in places]), strict=True))
        return np.stack([found[place] for place in range(len(rows))])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._tokenizer(list(texts), verbose=False)["input_ids"]
        limit = self.max_length
        long = [place for place, row in enumerate(rows) if limit is not None and len(row) > limit]
        if long:
            said = f"{len(long)} of {len(rows)} texts are longer than {limit} tokens"
            log.warning("%s, and are embedded without what stands behind them (retriever.chunker.size)", said)
            for place in long:
                rows[place] = self._tokenizer(texts[place], truncation=True, max_length=limit)["input_ids"]
        return [list(row) or [self._tokenizer.pad_token_id] for row in rows]

    def _pooled(self, rows: Sequence[list[int]]) -> np.ndarray:
        inputs = self._tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt", padding_side="right")
        device = self._model.get_input_embeddings().weight.device
        mask = torch.tensor([[1] * len(row) + [0] * (inputs["input_ids"].shape[1] - len(row)) for row in rows])
        with torch.inference_mode():
            states = self._model(input_ids=inputs["input_ids"].to(device), attention_mask=mask.to(device))
            hidden = states.last_hidden_state.float().cpu()
        if self._pooling == "cls":
            return hidden[:, 0].numpy()
        if self._pooling == "last":
            return hidden[torch.arange(len(rows)), mask.sum(1) - 1].numpy()
        return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
