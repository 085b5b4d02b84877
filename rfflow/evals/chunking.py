"""Cutting documents into passages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rfflow.errors import ConfigError
from rfflow.evals.questions import Document


def words(text: str, size: int = 64, overlap: int = 0) -> list[str]:
    """Cut a text into passages of so many words, the last ones of each again as the first of the next."""
    if not 0 <= overlap < size:
        raise ConfigError(
            f"retriever.chunker: size is {size} and overlap is {overlap}. Allowed: an overlap from 0 to below the size."
        )
    said = text.split()
    return [" ".join(said[start : start + size]) for start in range(0, max(1, len(said) - overlap), size - overlap)]


def passages(documents: Sequence[Document], chunker: Callable[[str], Iterable[str]] | None) -> list[Document]:
    """Return the passages of all documents, each with its document's id and title.

    Raises:
        ConfigError: if the chunker raises, or leaves nothing.
    """
    if chunker is None:
        return list(documents)
    found = []
    for document in documents:
        try:
            parts = [str(part) for part in chunker(document.text)]
        except ConfigError:
            raise
        except Exception as error:  # a user's own
            raise ConfigError(
                f"retriever.chunker, document {document.id!r}: {type(error).__name__}: {error}."
            ) from error
        found += [replace(document, text=part) for part in parts if part.strip()]
    if not found:
        raise ConfigError("retriever.chunker has left no passages.")
    return found
