"""Retrieval by meaning: passages and questions as vectors of a model, compared by their inner product.

The passages are embedded once: their vectors are kept on disk under a key of what was embedded and how, for all runs,
processes and later experiments.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rfflow.config.paths import cache_folder
from rfflow.errors import ConfigError
from rfflow.evals.questions import Document
from rfflow.worker.data.preparing import alone_with
from rfflow.worker.evaluation.embedding import Embedder, load_model
from rfflow.worker.models.bases import Bases

log = logging.getLogger(__name__)

_BLOCK = 64
"""Questions whose scores with all passages are held at a time."""


class Dense:
    """Finds the passages whose vectors are nearest to a question's.

    Args:
        documents: the passages.
        bases: where models are loaded from.
        model: a section like ``model``: ``name``, and arguments of ``from_pretrained``.
        pooling: ``mean``, ``cls`` or ``last``, as the model was trained.
        normalize: whether all vectors have length 1, so that the cosine counts.
        query_prefix: what stands before each question, where the model was trained so.
        document_prefix: what stands before each passage.
        batch_size: how many texts are embedded at a time.
        max_length: tokens of a text, behind which it is cut; ``None`` is what the model reads at most.
        index: a folder in which to keep the vectors; ``None`` is our cache.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        bases: Bases,
        model: Mapping[str, Any],
        pooling: str = "mean",
        normalize: bool = True,
        query_prefix: str = "",
        document_prefix: str = "",
        batch_size: int = 32,
        max_length: int | None = None,
        index: str | None = None,
    ):
        base = load_model(bases, model, "retriever.model")
        self._embed = Embedder(base, pooling, batch_size, max_length)
        self._query_prefix = query_prefix
        self._normalize = normalize
        texts = [
            f"{document_prefix}{each.title} {each.text}" if each.title else document_prefix + each.text
            for each in documents
        ]
        index_of = {
            "passages": len(texts),
            "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            "model": str(model["name"]),
            "weights": base.fingerprint,
            "tokenizer": model.get("tokenizer"),
            "pooling": pooling,
            "max_length": self._embed.max_length,
        }
        self._vectors = self._scaled(_kept(index, index_of, lambda: self._embed(texts)))
        self._known: dict[str, np.ndarray] = {}
        """Vectors of questions: runs that differ in something else ask the same ones."""

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[int]]:
        """Return, for each question, the places of the k nearest passages, nearest first."""
        new = list(dict.fromkeys(each for each in questions if each not in self._known))
        if new:
            made = self._scaled(self._embed([self._query_prefix + each for each in new]))
            self._known |= dict(zip(new, made, strict=True))
        found: list[list[int]] = []
        for start in range(0, len(questions), _BLOCK):
            block = np.stack([self._known[each] for each in questions[start : start + _BLOCK]])
            found += [_best(scores, k) for scores in block @ self._vectors.T]
        return found

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        if not self._normalize:
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _best(scores: np.ndarray, k: int) -> list[int]:
    """Return the places of the greatest; of equal ones the first."""
    places = np.arange(len(scores)) if k >= len(scores) else np.sort(np.argpartition(-scores, k - 1)[:k])
    return [int(place) for place in places[np.argsort(-scores[places], kind="stable")]]


# --- on disk ----------------------------------------------------------------------------------------------------------


def _kept(folder: str | None, index_of: Mapping[str, Any], make: Any) -> np.ndarray:
    """Return the vectors that are on disk, or make them and put them there.

    Raises:
        ConfigError: if the folder has an index of something else.
    """
    said = json.dumps(index_of, sort_keys=True)
    if folder is None:
        file = cache_folder("indexes") / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"
    else:
        file = Path(folder).expanduser() / "index.safetensors"
    with alone_with(f"index {file.absolute()}"):
        if (vectors := _read(file, index_of, is_own=folder is not None)) is not None:
            return vectors
        log.info("Embedding %d passages with %s once; kept in %s", index_of["passages"], index_of["model"], file.parent)
        vectors = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            save_file({"vectors": vectors}, partial, {"index_of": said})
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return vectors


def _read(file: Path, index_of: Mapping[str, Any], is_own: bool) -> np.ndarray | None:
    """Return the vectors of a file; None where there is none, or where ours is torn."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "np") as content:
            there = json.loads((content.metadata() or {}).get("index_of", "{}"))
            vectors = content.get_tensor("vectors")
    except (SafetensorError, ValueError, OSError) as error:
        if is_own:
            raise ConfigError(f"retriever.index: {file} cannot be read: {error}. Remove it to have it made.") from error
        return None
    other = [name for name, value in index_of.items() if there.get(name) != value]
    if not other:
        return vectors
    if not is_own:
        return None
    if {"passages", "texts"} & set(other):
        raise ConfigError(
            f"retriever.index: {file} is an index of another corpus: of {there.get('passages')} passages, and these "
            f"are {index_of['passages']}, or read otherwise. Leave retriever.index out, or give another folder for "
            "each corpus, chunker and document_prefix."
        )
    raise ConfigError(
        f"retriever.index: {file} was made otherwise: {other[0]} is {there.get(other[0])!r} there and "
        f"{index_of[other[0]]!r} here. Leave retriever.index out, or give another folder for each model."
    )
