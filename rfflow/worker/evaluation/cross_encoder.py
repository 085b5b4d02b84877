"""Reranking by a model that reads question and passage together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rfflow.errors import ConfigError
from rfflow.evals.questions import Document
from rfflow.worker.evaluation.embedding import check_count, load_model, longest_input
from rfflow.worker.models.bases import Bases


class CrossEncoder:
    """Scores pairs by ``AutoModelForSequenceClassification``.

    Args:
        bases: where models are loaded from.
        model: a section like ``model``: ``name``, and arguments of ``from_pretrained``.
        batch_size: how many passages at a time.
        max_length: tokens of a pair, behind which the passage is cut; ``None`` is what the model reads at most.
    """

    def __init__(self, bases: Bases, model: Mapping[str, Any], batch_size: int = 16, max_length: int | None = None):
        check_count(batch_size, "reranker.batch_size")
        base = load_model(bases, model, "reranker.model", auto_class="AutoModelForSequenceClassification")
        self._tokenizer = base.tokenizer()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model: Any = base.structure().eval()
        self._model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        if self._model.config.num_labels != 1:
            raise ConfigError(
                f"reranker.model.name is {model['name']!r}, whose head has {self._model.config.num_labels} labels. A "
                "reranker has one, which is the score."
            )
        self._batch_size = batch_size
        self._max_length = longest_input(self._tokenizer, self._model.config, max_length, "reranker.max_length")

    def rerank(self, question: str, passages: Sequence[Document]) -> list[float]:
        """Return the score of each passage."""
        texts = [f"{each.title} {each.text}".strip() for each in passages]
        scores: list[float] = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            inputs = self._tokenizer(
                [question] * len(batch),
                batch,
                truncation=False if self._max_length is None else "only_second",
                max_length=self._max_length,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                scores += self._model(**inputs).logits[:, 0].float().tolist()
        return scores
