"""Turns pairs of a faithful and an unfaithful summary into preferences for a chat model. The standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REQUEST = "Summarize in one sentence, and change no fact: "


def to_preference(row: Mapping[str, Any], request: str = REQUEST) -> dict[str, Any]:
    """Return a prompt with the chosen and the rejected answer, as messages.

    Args:
        row: has the columns ``article_sent``, ``correct_sent`` and ``incorrect_sent``.
        request: what stands before the sentence to summarize.
    """
    return {
        "prompt": [{"role": "user", "content": request + row["article_sent"].strip()}],
        "chosen": [{"role": "assistant", "content": row["correct_sent"].strip()}],
        "rejected": [{"role": "assistant", "content": row["incorrect_sent"].strip()}],
    }
