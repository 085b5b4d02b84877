"""What retrievers are given, what they return, and what is made of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rfflow.config.spec import Node
from rfflow.config.targets import import_object, resolve_function
from rfflow.errors import ConfigError
from rfflow.evals.questions import Document, shortened

Found = int | Document | Mapping[str, Any] | str
"""A place among the documents, a document, ``{id, text, title}``, or a text."""


class Retriever(Protocol):
    """What a class under ``retriever._target_`` is; a parameter ``documents`` of its constructor gets the passages."""

    def retrieve(self, questions: Sequence[str], k: int) -> Sequence[Sequence[Found]]:
        """Return, for each question, what was found for it, best first."""
        ...


def wants(node: Node, name: str, where: str) -> bool:
    """Whether what a node names has a parameter of that name."""
    made = import_object(str(node["_target_"]), where)
    try:
        return name in inspect.signature(made).parameters
    except (TypeError, ValueError):
        return False


def make(node: Node, where: str, **given: Any) -> Any:
    """Return what the class, or the function, makes of the node's other keys and of what no configuration can hold.

    Raises:
        ConfigError: if it cannot be imported, does not take them, or raises.
    """
    maker = resolve_function(node, where)
    try:
        return maker(**given)
    except ConfigError:
        raise
    except Exception as error:  # a user's own
        raise ConfigError(f"{where}: cannot make {node['_target_']}: {type(error).__name__}: {error}") from error


def make_retriever(
    node: Node, documents: Sequence[Document] | None, where: str = "retriever", **given: Any
) -> Retriever:
    """Return the retriever that a node names; it is given what no configuration can hold.

    Raises:
        ConfigError: if it cannot be made, or has no ``retrieve``.
    """
    if wants(node, "documents", where):
        if documents is None:
            raise ConfigError(f"{where} {node['_target_']} looks in documents. Say corpus=..., or retriever=none.")
        given["documents"] = documents
    made = make(node, where, **given)
    if not callable(getattr(made, "retrieve", None)):
        raise ConfigError(f"{where}: {node['_target_']} has no method retrieve(questions, k).")
    return made


def retrieve(
    retriever: Retriever, questions: Sequence[str], k: int, documents: Sequence[Document] = ()
) -> list[list[Document]]:
    """Return what was found for each question, best first.

    Raises:
        ConfigError: if it raises, or returns something else.
    """
    try:
        results = [list(found) for found in retriever.retrieve(list(questions), k)] if questions else []
        if len(results) != len(questions):
            raise ConfigError(f"retriever returned {len(results)} results for {len(questions)} questions.")
        return [[_document(each, documents) for each in found[:k]] for found in results]
    except ConfigError:
        raise
    except Exception as error:  # a user's own
        raise ConfigError(f"retriever: {type(error).__name__}: {error}.") from error


def _document(found: Any, documents: Sequence[Document]) -> Document:
    if isinstance(found, Document):
        return found
    if isinstance(found, str):
        return Document(found, found)
    if isinstance(found, Mapping) and isinstance(found.get("text"), str):
        return Document(str(found.get("id", found["text"])), found["text"], str(found.get("title") or ""))
    try:
        return documents[int(found)]
    except (TypeError, ValueError, IndexError):
        raise ConfigError(
            f"retriever returned {shortened(found)}. Allowed: places among the documents (0 to {len(documents) - 1}), "
            "or {id, text}."
        ) from None
