"""SFTTrainer with the metric that people know from pre-training beside its loss."""

from __future__ import annotations

import math

from trl import SFTTrainer


class PerplexityTrainer(SFTTrainer):
    """Logs ``eval_perplexity``, which is exp of ``eval_loss``, the mean cross-entropy of a token in nats.

    Perplexities are comparable where the text and the tokenizer are the same.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add it to what an evaluation logs."""
        if "eval_loss" in logs:
            # In place: transformers hands the same dict to the callbacks as the evaluation's metrics.
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700))  # beyond that a float overflows
        super().log(logs, start_time)
