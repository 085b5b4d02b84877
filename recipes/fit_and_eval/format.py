"""Turns the rows that adapters are trained on into questions. The standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.customer_support.format import to_chat


def to_question(
    row: Mapping[str, Any],
    question: str | Sequence[str] = "question",
    answer: str = "answer",
    system: str | None = None,
) -> dict[str, str]:
    """Return what ``recipes.customer_support.format.to_chat`` makes a conversation of, as question and reference.

    Args:
        row: has the columns named below.
        question: the column with what the customer asks, or several, which are joined.
        answer: the column with what support answers.
        system: not read: what the model is told is said by the prompt of the evaluation.

    Raises:
        KeyError: if the row lacks one of the columns.
    """
    (asked,), (said,) = (to_chat(row, question, answer, system=None)[part] for part in ("prompt", "completion"))
    return {"question": asked["content"], "reference": said["content"]}
