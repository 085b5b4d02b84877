"""Scores for masked texts. What leaks and what is lost are two things, so there is more than one number.

They are called with what the model wrote, what it should have written, and the column ``entities``: for each text the
strings that were to be masked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any


def exact_match(predictions: Sequence[str], references: Sequence[str], **_: Any) -> float:
    """Return the share of texts that are masked just as they should be, to the letter."""
    pairs = zip(predictions, references, strict=True)
    return sum(said.strip() == wanted.strip() for said, wanted in pairs) / len(predictions)


def masks(predictions: Sequence[str], references: Sequence[str], **_: Any) -> dict[str, float]:
    """Return the recall and the precision of the masks such as [NAME], counted over all texts.

    A mask of another kind than it should be counts as none. Where no mask was written (or wanted), its share is 1.
    """
    wanted, written, right = 0, 0, 0
    for said, reference in zip(predictions, references, strict=True):
        there, expected = (Counter(re.findall(r"\[[A-Z_0-9]+\]", text)) for text in (said, reference))
        wanted += expected.total()
        written += there.total()
        right += (there & expected).total()
    return {"mask_recall": right / wanted if wanted else 1.0, "mask_precision": right / written if written else 1.0}


def leaked(predictions: Sequence[str], entities: Sequence[Sequence[str]], **_: Any) -> float:
    """Return the share of all entities that still stand in the answers, word for word but for case and blanks.

    An answer that says nothing leaks nothing: look at the recall of the masks beside it.
    """
    found = [_stands_in(said, entity) for said, some in zip(predictions, entities, strict=True) for entity in some]
    return sum(found) / len(found) if found else 0.0


def _stands_in(text: str, entity: str) -> bool:
    words = r"\s+".join(map(re.escape, entity.split()))
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None
