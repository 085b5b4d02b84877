"""What is found for each question: passages of the corpus by the retriever, put in order by the reranker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rfflow.config.spec import DatasetSpec, EvaluationSpec, Node, TrainerSpec
from rfflow.config.targets import resolve_function
from rfflow.errors import ConfigError
from rfflow.evals.chunking import passages
from rfflow.evals.questions import Document, Question, read_documents
from rfflow.evals.reranking import Ranked
from rfflow.evals.retrieval import Retriever, make, make_retriever, retrieve, wants
from rfflow.worker.shared import Shared


@dataclass(frozen=True)
class Index:
    """A retriever and what it looks in."""

    retriever: Retriever
    passages: Sequence[Document]


def find(spec: EvaluationSpec, shared: Shared, questions: Sequence[Question]) -> list[list[Document]]:
    """Return what was found for each question, best first.

    Raises:
        ConfigError: for whatever cannot be.
    """
    if spec.retriever is None:
        return [[] for _ in questions]
    index = _index(spec, shared)
    count = len(index.passages)
    if count and spec.k > count:
        raise ConfigError(f"retriever.k is {spec.k}, and the corpus has {count} passages. Allowed: 1 to {count}.")
    texts = [each.text for each in questions]
    if spec.reranker is None:
        return retrieve(index.retriever, texts, spec.k, index.passages)
    candidates = min(spec.reranked, count) if count else spec.reranked
    found = retrieve(index.retriever, texts, candidates, index.passages)
    ranked = _reranker(spec.reranker, shared)
    return [ranked(text, each)[: spec.k] for text, each in zip(texts, found, strict=True)]


def _index(spec: EvaluationSpec, shared: Shared) -> Index:
    """Return the retriever, made once for all runs that look in the same passages in the same way."""
    node, corpus = spec.retriever, spec.corpus
    assert node is not None

    def made() -> Index:
        documents = [] if corpus is None else _passages(spec, corpus, shared)
        return Index(make_retriever(node, documents or None, **_models(node, "retriever", shared)), documents)

    of = [None if corpus is None else corpus.key, spec.chunker, node]
    return shared.made_once(f"index {json.dumps(of, sort_keys=True, default=str)}", made)


def _reranker(node: Node, shared: Shared) -> Ranked:
    """Return the reranker, made once for all runs that have the same."""

    def made() -> Ranked:
        return Ranked(make(node, "reranker", **_models(node, "reranker", shared)), str(node["_target_"]))

    return shared.made_once(f"reranker {json.dumps(dict(node), sort_keys=True, default=str)}", made)


def _models(node: Node, where: str, shared: Shared) -> dict[str, Any]:
    """Return where models are loaded from, for those who ask for it."""
    return {"bases": shared.bases} if wants(node, "bases", where) else {}


def _passages(spec: EvaluationSpec, corpus: DatasetSpec, shared: Shared) -> list[Document]:
    reads = "rfflow.evals.questions.Document"
    try:
        rows = shared.data(corpus, TrainerSpec(reads, reads)).train
    except ConfigError as error:
        raise ConfigError(f"corpus: {str(error).replace('dataset.', 'corpus.')}") from error
    chunker = None if spec.chunker is None else resolve_function(spec.chunker, "retriever.chunker")
    return passages(read_documents(rows), chunker)
