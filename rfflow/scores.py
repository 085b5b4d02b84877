"""Scores for what a model generates, compared with what it should have said.

Name them in ``evaluation.generate.scores``. Each is called once at a chunk's end, with all answers and, where the data
has them, what was expected (``references``), and with the columns of the rows; it returns a number, or a dict of
numbers. A function of your own looks the same: ``def my_score(predictions, references, **_)``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def exact_match(predictions: Sequence[str], references: Sequence[str], **_: Any) -> float:
    """Return the share of answers that are what was expected, but for case and blanks."""
    return sum(map(_is_same, predictions, references)) / len(predictions)


def rouge_l(predictions: Sequence[str], references: Sequence[str], **_: Any) -> float:
    """Return the mean ROUGE-L F-measure, from 0 to 1: how long a sequence of words both have in common.

    Words are runs of letters and digits without regard to case, as in the paper's own script, and are not stemmed.
    """
    return sum(map(_rouge_l, predictions, references)) / len(predictions)


def bleu(predictions: Sequence[str], references: Sequence[str], **_: Any) -> float:
    """Return the BLEU of all answers together, from 0 to 100, as sacreBLEU defines it.

    Raises:
        ImportError: if the library is missing (``pip install 'rfflow[text]'``).
    """
    try:
        from sacrebleu import corpus_bleu  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("rfflow.scores.bleu needs a library: pip install 'rfflow[text]'") from error
    return float(corpus_bleu(list(predictions), [list(references)]).score)


def _rouge_l(prediction: str, reference: str) -> float:
    """Lin, ROUGE: A Package for Automatic Evaluation of Summaries (2004), section 3."""
    one, other = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, reference))
    common = [0] * (len(other) + 1)  # the longest common subsequence with each beginning of the other
    for word in one:
        diagonal = 0
        for index, candidate in enumerate(other, start=1):
            longest = diagonal + 1 if word == candidate else max(common[index], common[index - 1])
            diagonal, common[index] = common[index], longest
    return 2 * common[-1] / (len(one) + len(other)) if common[-1] else 0.0


def _is_same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
