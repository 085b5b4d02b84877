"""Turns rows of questions and answers into conversations for a chat model. The standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def to_chat(row: Mapping[str, Any], system: str | None = None, max_characters: int | None = None) -> dict[str, Any]:
    """Return a prompt and a completion as messages; TRL puts them into the model's own chat format.

    Args:
        row: has the columns ``question`` and ``answer``.
        system: what the system message says; without one the model's chat template may put its own.
        max_characters: the answer keeps as many whole sentences as fit, and at least one.
    """
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": tidy(row["question"])})
    answer = tidy(row["answer"])
    if max_characters is not None:
        answer = first_sentences(answer, max_characters)
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def tidy(text: str) -> str:
    """Take out what reading a CSV file wrongly has left: quotes around everything, doubled quotes, runs of blanks."""
    text = " ".join(text.split())
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1].replace('""', '"').strip()
    return text


def first_sentences(text: str, max_characters: int) -> str:
    """Return as many whole sentences as fit into so many characters, and at least one."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?]) ", text):
        if kept and len(kept) + 1 + len(sentence) > max_characters:
            break
        kept = f"{kept} {sentence}".strip()
    return kept
