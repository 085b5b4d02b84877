"""Retrieval by the words that question and passage share."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rfflow.errors import ConfigError
from rfflow.evals.questions import Document


class BM25:
    """Okapi BM25 (Robertson and Walker, 1994), by bm25s.

    Args:
        documents: what to look in.
        k1: how soon a word that comes again counts no more.
        b: how much long passages are held back.
        stopwords: a language (``en``) whose commonest words do not count, or ``None``.
    """

    def __init__(self, documents: Sequence[Document], k1: float = 1.5, b: float = 0.75, stopwords: str | None = "en"):
        try:
            import bm25s
        except ImportError as error:
            raise ConfigError("retriever=bm25 wants the package bm25s: pip install 'rfflow[rag]'.") from error
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._tokenize = lambda texts: bm25s.tokenize(texts, stopwords=stopwords, show_progress=False)
        self._index = bm25s.BM25(k1=k1, b=b)
        self._documents = documents
        self._index.index(self._tokenize([f"{each.title} {each.text}" for each in documents]), show_progress=False)

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[int]]:
        """Return, for each question, the places of the k best passages among the documents, best first."""
        found, _ = self._index.retrieve(self._tokenize(list(questions)), k=k, show_progress=False)
        return [[int(place) for place in places] for places in found]
