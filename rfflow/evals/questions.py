"""What is asked and what is looked through, made of rows; and the order in which the questions come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rfflow.errors import ConfigError, nearest


@dataclass(frozen=True)
class Question:
    """One item of the set."""

    id: str
    text: str
    references: tuple[str, ...] = ()
    """Right answers; empty where the data has none."""
    relevant: tuple[str, ...] = ()
    """The documents in which the answer stands, by id."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The other columns."""


@dataclass(frozen=True)
class Document:
    """One of the corpus, or a passage of one."""

    id: str
    """The document's own, also of a passage."""
    text: str
    title: str = ""


_COLUMNS = ("id", "question", "reference", "references", "relevant")


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Make questions of rows with the columns question, reference (a text, or a list of them), id and relevant.

    Without an id it is the number of the row, from 0.

    Raises:
        ConfigError: if a row has no question, or two have one id.
    """
    found: dict[str, Question] = {}
    for index, row in enumerate(rows):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            hint = "" if "question" in row else nearest("question", row)
            raise ConfigError(
                f"The data set has no question in row {index}: {shortened(text)}.{hint} Columns there: "
                f"{', '.join(row)}. An evaluation reads question, reference (a text or a list), and if need be id and "
                "relevant. Rename them (dataset.columns={prompt: question, answer: reference}) or give a "
                "dataset.formatting_func."
            )
        id = str(index if row.get("id") is None else row["id"])
        if id in found:
            raise ConfigError(
                f"The data set has two questions with the id {id!r}, the second in row {index}. Allowed: each id once; "
                "without the column id it is the number of the row."
            )
        references = row.get("references") if row.get("reference") is None else row["reference"]
        others = {key: value for key, value in row.items() if key not in _COLUMNS}
        said = _texts(references)
        said = said if any(each.strip() for each in said) else ()  # an empty cell of a table
        found[id] = Question(id, text, said, _texts(row.get("relevant")), others)
    if not found:
        raise ConfigError("The data set has no questions.")
    return list(found.values())


def read_documents(rows: Iterable[Mapping[str, Any]]) -> list[Document]:
    """Make documents of rows with the columns text, id and title; what stands there twice, word for word, is one.

    Raises:
        ConfigError: if a row has no text, or two different ones have one id.
    """
    found: dict[str, Document] = {}
    for index, row in enumerate(rows):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f"corpus: there is no text in row {index}: {shortened(text)}. Columns there: {', '.join(row)}. Read "
                "are text, and if need be id and title."
            )
        id = str(index if row.get("id") is None else row["id"])
        document = Document(id, text, str(row.get("title") or ""))
        if found.setdefault(id, document) != document:
            raise ConfigError(f"corpus: two different documents have the id {id!r}, the second in row {index}.")
    if not found:
        raise ConfigError("corpus: there are no documents.")
    return list(found.values())


def permutation(count: int, seed: int) -> list[int]:
    """Return the order in which the questions come: the same for every candidate, whatever it answers with."""
    return [int(index) for index in np.random.default_rng(seed).permutation(count)]


def shards(count: int, number: int) -> tuple[int, ...]:
    """Return after how many questions each of so many shards ends.

    Raises:
        ConfigError: if there are more shards than questions.
    """
    if number > count:
        raise ConfigError(f"chunks is {number}, and there are {count} questions: at most so many chunks.")
    return tuple((index + 1) * count // number for index in range(number))


def check_references(questions: Sequence[Question], wanted_by: str) -> None:
    """Check that every question says what should be answered.

    Raises:
        ConfigError: naming the first that does not.
    """
    without = [question.id for question in questions if not question.references]
    if without:
        raise ConfigError(
            f"{wanted_by} compares with a reference, and {len(without)} of {len(questions)} questions have none, the "
            f"first {without[0]!r}. Allowed: a text or a list of texts in the column reference of each "
            "(dataset.columns renames), or no metrics and no examples that want one."
        )


def shortened(value: Any) -> str:
    """Return what a sentence can show of a value."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    # NaN is an empty cell, too.
    return tuple(str(each) for each in values if each is not None and each == each)
