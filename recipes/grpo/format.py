"""Turns word problems into prompts that ask for reasoning in tags. The standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SYSTEM = """Answer in this form:
<reasoning>
...
</reasoning>
<answer>
...
</answer>"""

EXAMPLE = (
    "Tom has 2 pens and buys 3 more. How many pens does he have?",
    "<reasoning>\n2 + 3 = 5\n</reasoning>\n<answer>\n5\n</answer>",
)


def to_prompt(row: Mapping[str, Any], system: str = SYSTEM, shots: int = 1) -> dict[str, Any]:
    """Return the problem as messages, and its answer in a column of its own for the reward functions.

    Args:
        row: a row of ASDiv (``passage``, ``question``, ``answer`` such as ``9 apples``) or of GSM8K (``question``,
            ``answer`` with the number behind ``####``).
        system: how to answer.
        shots: with 1, an example goes before; small models do not find the form without.
    """
    messages = [{"role": "system", "content": system}]
    for question, answer in [EXAMPLE][:shots]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    problem = f"{row.get('passage') or ''} {row['question']}".strip()
    return {"prompt": [*messages, {"role": "user", "content": problem}], "answer": number(row["answer"])}


def number(answer: str) -> str:
    """Return the number of an answer: behind ``####`` where that is there, else the first."""
    found = re.search(r"-?\d[\d,]*(?:\.\d+)?", answer.rpartition("####")[2])
    return found[0].replace(",", "") if found else answer.strip()
