"""Turns a text and the same text masked into a request and its answer. The standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INSTRUCTION = "Repeat the text with all personal data masked."


def to_masking(row: Mapping[str, Any], instruction: str = INSTRUCTION) -> dict[str, Any]:
    """Return the text as a request, the masked text as the answer, and what was masked for the scores.

    Args:
        row: has ``text``, ``masked`` and ``entities``, the strings that are masked.
        instruction: what the model is told, before any text.
    """
    return {
        "prompt": request(row["text"], instruction),
        "completion": [{"role": "assistant", "content": row["masked"]}],
        "entities": list(row["entities"]),
    }


def from_ai4privacy(row: Mapping[str, Any], instruction: str = INSTRUCTION) -> dict[str, Any]:
    """Return the same from a row of the hub's ai4privacy/pii-masking-200k, of which 300k and 400k differ in names only.

    Args:
        row: has ``source_text``, ``target_text`` and ``privacy_mask``, a list (or its JSON) of dicts with a ``value``.
        instruction: what the model is told, before any text.
    """
    mask = row["privacy_mask"]
    found = json.loads(mask) if isinstance(mask, str) else mask
    text, masked = row["source_text"], row.get("target_text") or row["masked_text"]
    return to_masking({"text": text, "masked": masked, "entities": [item["value"] for item in found]}, instruction)


def request(text: str, instruction: str = INSTRUCTION) -> list[dict[str, str]]:
    """Return the messages that ask a model to mask a text."""
    return [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
