"""Turns rows of ASDiv into questions. The standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_question(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the problem and its answer, such as ``9 apples``.

    Args:
        row: has the columns ``passage``, ``question`` and ``answer``.
    """
    return {"question": row["question"].strip(), "passage": row["passage"].strip(), "reference": row["answer"]}
