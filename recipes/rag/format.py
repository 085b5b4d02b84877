"""Turns rows of NarrativeQA into questions and documents. The standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def to_question(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the question, its right answers and the document in which they stand.

    Args:
        row: has the columns ``question``, ``answer`` (a list) and ``passage``.
    """
    return {
        "question": row["question"].strip(),
        "reference": [answer.strip() for answer in row["answer"]],
        "relevant": [to_document(row)["id"]],
    }


def to_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary that a question is about."""
    return {"id": hashlib.sha256(row["passage"].encode()).hexdigest()[:12], "text": row["passage"]}
