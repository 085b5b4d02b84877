"""The longest batch that a trainer's rows can give, before it trains: how many rows of how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow.compute as compute
from datasets import Dataset
from transformers import Trainer

_LOOKED_AT = 16
"""How many prompts, the longest by their characters, are tokenized to find the one with most tokens."""
_TEMPLATE = 32
"""Tokens that a chat template adds at most."""


class Batch(NamedTuple):
    """Rows that go through the model at once."""

    rows: int
    tokens: int
    """Of each row, padded."""


def longest_batch(trainer: Trainer) -> Batch | None:
    """Return an upper bound, from the rows that the trainer has prepared or else from its arguments.

    Returns:
        ``None`` where neither tells: rows of an unknown kind, and no ``max_length``.
    """
    args, rows = trainer.args, trainer.args.per_device_train_batch_size
    limit = getattr(args, "max_length", None)
    data: Any = trainer.train_dataset
    data = data if isinstance(data, Dataset) else None
    columns = set(data.column_names) if data is not None else set()
    if hasattr(args, "max_completion_length"):
        prompt = None if data is None else _longest_prompt(trainer, data)
        return None if prompt is None else Batch(rows, prompt + args.max_completion_length)
    if data is None or not len(data):
        found = None
    elif {"chosen_ids", "rejected_ids"} <= columns:
        rows *= 2
        found = max(_longest(data, "chosen_ids"), _longest(data, "rejected_ids"))
        found += _longest(data, "prompt_ids") if "prompt_ids" in columns else 0
    elif {"prompt_ids", "completion_ids"} <= columns:
        found = _longest(data, "prompt_ids") + _longest(data, "completion_ids")
    elif "input_ids" in columns:
        found = _longest(data, "input_ids")
    else:
        found = None
    if found is None:
        return None if limit is None else Batch(2 * rows, limit)  # pairs, if it is a trainer of those
    if getattr(trainer, "padding_free", False):  # laid end to end, and then no row is cut
        return Batch(1, rows * found)
    return Batch(rows, found if limit is None else min(found, limit))


def _longest(data: Dataset, column: str) -> int:
    return int(compute.max(compute.list_value_length(data.data.column(column))).as_py() or 0)


def _longest_prompt(trainer: Trainer, data: Dataset) -> int | None:
    if "prompt" not in data.column_names:
        return None
    texts = sorted({_text(prompt) for prompt in data["prompt"]}, key=len)[-_LOOKED_AT:]
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found = max((len(ids) for ids in tokenizer(texts)["input_ids"]), default=0) + _TEMPLATE
    most = getattr(trainer.args, "max_prompt_length", None)
    return found if most is None else min(found, most)


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = [turn.get("content") for turn in prompt if isinstance(turn, Mapping)]
    return "\n".join(turn if isinstance(turn, str) else str(turn) for turn in turns)
