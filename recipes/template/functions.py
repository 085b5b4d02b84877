"""What this recipe makes of its data, and how it judges answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def to_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of the file into the columns that the trainer reads: for SFT, prompt and completion."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def share_of_short(predictions: Sequence[str], limit: int = 80, **_: Any) -> float:
    """Score what the model generated at a chunk's end; it logs as eval_share_of_short."""
    return sum(len(text) <= limit for text in predictions) / len(predictions)


def reward_short(completions: Sequence[Any], limit: int = 80, **_: Any) -> list[float]:
    """Reward each completion (text, or messages where the prompts are); columns of the data come by name."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [1.0 if len(text) <= limit else 0.0 for text in texts]
