"""Turns questions to a support desk and their answers into conversations. The standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SYSTEM = "You are a helpful customer support assistant."


def to_chat(
    row: Mapping[str, Any],
    question: str | Sequence[str] = "question",
    answer: str = "answer",
    system: str | None = SYSTEM,
) -> dict[str, Any]:
    """Return a prompt and a completion as messages; TRL puts them into the model's own chat format.

    Args:
        row: has the columns named below.
        question: the column with what the customer asks, or several, which are joined.
        answer: the column with what support answers; its lines stay as they are.
        system: what the system message says; without one the model's chat template may put its own.

    Raises:
        KeyError: if the row lacks one of the columns.
    """
    columns = [question] if isinstance(question, str) else question
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": ": ".join(str(row[column]).strip() for column in columns)})
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": str(row[answer]).strip()}]}
