"""Scores of one answer, and of the documents that were found for it; each is a number from 0 to 1.

The first take an answer and its references, and score the best match, as SQuAD's own script does (Rajpurkar et al.,
2016). The last take the documents found, best first, and those that are relevant.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def words(text: str) -> list[str]:
    """Return the words that count: in lower case, without punctuation and articles."""
    return [word for word in text.lower().translate(_PUNCTUATION).split() if word not in _ARTICLES]


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Whether the answer has the words of a reference, and no others."""
    return float(any(words(answer) == words(reference) for reference in references))


def contains(answer: str, references: Sequence[str]) -> float:
    """Whether the words of a reference stand in the answer, one behind the other."""
    said = f" {' '.join(words(answer))} "
    return float(any(words(reference) and f" {' '.join(words(reference))} " in said for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words, for the reference where it is highest."""
    return max((_f1(words(answer), words(reference)) for reference in references), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return ROUGE-L: F1 of the longest sequence of words that answer and reference share, gaps allowed.

    Precision and recall are its length over theirs, and weigh the same (Lin, 2004, section 3.1, with beta = 1); words
    are letters and digits in lower case, without stemming. The reference where it is highest counts.
    """
    said = _WORD.findall(answer.lower())
    return max((_rouge_l(said, _WORD.findall(reference.lower())) for reference in references), default=0.0)


def _rouge_l(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return 0.0
    lengths = [0] * (len(wanted) + 1)  # of the longest common sequences with the first words of `wanted`
    for word in said:
        before = 0
        for place, other in enumerate(wanted, 1):
            here = lengths[place]
            lengths[place] = before + 1 if word == other else max(here, lengths[place - 1])
            before = here
    return 2 * lengths[-1] / (len(said) + len(wanted))


def number_match(answer: str, references: Sequence[str]) -> float:
    """Whether the last number of the answer is that of a reference; ``1,000.0`` is ``1000``."""
    said = _last_number(answer)
    return float(said is not None and any(said == _last_number(reference) for reference in references))


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def recall(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the share of the relevant documents among the first ``k``; NaN where none is relevant."""
    wanted = set(relevant)
    return len(wanted & set(found[:k])) / len(wanted) if wanted else math.nan


def ndcg(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the discounted gain of the first ``k`` over the best possible one; NaN where nothing is relevant.

    Relevance is binary, the discount log2(rank + 1) (Jarvelin and Kekalainen, 2002); a document counts once.
    """
    wanted = set(relevant)
    if not wanted:
        return math.nan
    order = list(dict.fromkeys(found))[:k]
    gain = sum(1 / math.log2(rank + 2) for rank, document in enumerate(order) if document in wanted)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))


def reciprocal_rank(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return 1 / rank of the first relevant document among the first ``k``, 0 if there is none; NaN as above."""
    wanted = set(relevant)
    if not wanted:
        return math.nan
    return next((1 / rank for rank, document in enumerate(found[:k], 1) if document in wanted), 0.0)


# --- what an answer took, which has no upper bound (range: [0, null]) -------------------------------------------------


def latency(latency: float) -> float:
    """Return the seconds."""
    return latency


def tokens(usage: Mapping[str, float]) -> float:
    """Return the tokens of prompt and answer; NaN where nobody has counted."""
    return float(sum(usage.values())) if usage else math.nan


def cost(cost: float) -> float:
    """Return the cost, in the currency of the prices."""
    return cost
