"""Reward functions for reasoning in tags: ``<reasoning>…</reasoning><answer>…</answer>``, and for mathematics.

Name them in ``trainer.reward_funcs``; each is called as TRL calls it, with the completions and the columns of the data,
and returns a number for every completion. Arguments go beside ``_target_``::

    trainer:
      reward_funcs:
        - rfflow.rewards.correct_answer
        - {_target_: rfflow.rewards.integer_answer, reward: 0.25}
      args:
        reward_weights: [1.0, 0.5]

The five of :data:`CLASSIC` are those that people train GSM8K with; their sizes add up to 4. A function of your own
looks the same: ``def my_reward(completions, answer, **_)``, where ``answer`` is a column of your data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
"""Text, or the messages of a conversation."""

CLASSIC = ("correct_answer", "integer_answer", "strict_format", "soft_format", "tag_count")


def correct_answer(
    completions: Sequence[Completion], answer: Sequence[Any], reward: float = 2.0, **_: Any
) -> list[float]:
    """Reward an answer that is the one in the column ``answer``: the same number, or else the same words.

    A completion without tags is taken whole, and of a worked solution like GSM8K's the part behind ``####`` counts.
    """
    return [
        reward if _same(extract_answer(text_of(completion)), _wanted(wanted)) else 0.0
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def integer_answer(completions: Sequence[Completion], reward: float = 0.5, **_: Any) -> list[float]:
    """Reward an answer that is a whole number and nothing else."""
    return [
        reward if re.fullmatch(r"[+-]?\d+", extract_answer(text_of(completion))) else 0.0 for completion in completions
    ]


def strict_format(completions: Sequence[Completion], reward: float = 0.5, **_: Any) -> list[float]:
    """Reward both parts in their tags, each tag on a line of its own, and nothing before or behind them."""
    pattern = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?", re.DOTALL)
    return [reward if pattern.fullmatch(text_of(completion)) else 0.0 for completion in completions]


def soft_format(completions: Sequence[Completion], reward: float = 0.5, **_: Any) -> list[float]:
    """Reward both parts in their tags, one behind the other, whatever stands around them."""
    pattern = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", re.DOTALL)
    return [reward if pattern.search(text_of(completion)) else 0.0 for completion in completions]


def tag_count(completions: Sequence[Completion], reward: float = 0.125, **_: Any) -> list[float]:
    """Reward each of the four tags that is there exactly once, and take a little off for text behind the last."""
    return [_count_tags(text_of(completion), reward) for completion in completions]


def math_verify(
    completions: Sequence[Completion], answer: Sequence[Any], reward: float = 1.0, **_: Any
) -> list[float | None]:
    """Reward an answer that is mathematically the one in the column ``answer``: ``1/2``, ``0.5`` and ``\\frac{1}{2}``.

    It says nothing (``None``) about rows whose answer it cannot read as mathematics.

    Raises:
        ImportError: if the library is missing (``pip install 'rfflow[math]'``).
    """
    try:
        from math_verify import parse, verify  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("rfflow.rewards.math_verify needs a library: pip install 'rfflow[math]'") from error
    rewards: list[float | None] = []
    for completion, wanted in zip(completions, answer, strict=True):
        # Without time limits: the library sets them by a signal, which only a main thread may.
        gold = parse(_as_mathematics(_wanted(wanted)), parsing_timeout=None)
        if not gold:
            rewards.append(None)
            continue
        found = parse(_as_mathematics(extract_answer(text_of(completion))), parsing_timeout=None)
        rewards.append(reward if verify(gold, found, timeout_seconds=None) else 0.0)
    return rewards


def text_of(completion: Completion) -> str:
    """Return the text of a completion, or what its last message says."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""


def extract_answer(text: str) -> str:
    """Return what stands in the last ``<answer>`` of a text, or the whole text where there is none."""
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _wanted(answer: Any) -> str:
    return str(answer).rpartition("####")[2].strip()


def _same(found: str, wanted: str) -> bool:
    one, two = _number(found), _number(wanted)
    if one is not None and two is not None:
        return one == two
    return " ".join(found.split()).casefold() == " ".join(wanted.split()).casefold()


def _number(text: str) -> Decimal | None:
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.strip().lstrip("$€£").rstrip(".%"))
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _count_tags(text: str, reward: float) -> float:
    tags = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
    total = sum(reward for tag in tags if text.count(tag) == 1)
    if text.count("</answer>") == 1:
        total -= 0.001 * len(text.rpartition("</answer>")[2].strip())
    return max(total, 0.0)


def _as_mathematics(text: str) -> str:
    """Put it where the library looks for LaTeX first; it finds plain numbers and expressions there too."""
    return text if "$" in text or "\\boxed" in text or "\\[" in text else f"${text}$"
