"""A second look at what was found: a reranker gives each passage a score for the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from rfflow.errors import ConfigError
from rfflow.evals.questions import Document, shortened


class Reranker(Protocol):
    """What a class under ``reranker._target_`` is."""

    def rerank(self, question: str, passages: Sequence[Document]) -> Sequence[float]:
        """Return a score for each passage; the greatest is best."""
        ...


class Ranked:
    """Puts passages in order by a reranker, asking it once for each question and what was found for it."""

    def __init__(self, reranker: Reranker, name: str):
        """Look at it.

        Raises:
            ConfigError: if it has no ``rerank``.
        """
        if not callable(getattr(reranker, "rerank", None)):
            raise ConfigError(f"reranker: {name} has no method rerank(question, passages).")
        self._reranker = reranker
        self._known: dict[tuple[str, tuple[Document, ...]], list[Document]] = {}

    def __call__(self, question: str, passages: Sequence[Document]) -> list[Document]:
        """Return the passages, best first; equal ones stay as they were.

        Raises:
            ConfigError: if it raises, or returns something else than a number for each.
        """
        key = (question, tuple(passages))
        if key not in self._known:
            scores = self._scores(question, list(passages)) if passages else []
            order = sorted(range(len(scores)), key=lambda place: -scores[place])
            self._known[key] = [passages[place] for place in order]
        return list(self._known[key])

    def _scores(self, question: str, passages: list[Document]) -> list[float]:
        try:
            returned: Any = self._reranker.rerank(question, passages)
            scores = [float(score) for score in returned]
        except ConfigError:
            raise
        except Exception as error:  # a user's own
            raise ConfigError(f"reranker: {type(error).__name__}: {error}.") from error
        if len(scores) != len(passages) or any(math.isnan(score) for score in scores):
            raise ConfigError(
                f"reranker returned {shortened(scores)} for {len(passages)} passages. Allowed: a number for each, the "
                "greatest for the best."
            )
        return scores
