"""Whether a clone could start from its parent's weights, as far as their configurations tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rfflow.dashboard.reader import Experiment

_OF_THE_ADAPTER = (
    *("_target_", "peft_type", "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "rank_pattern", "bias", "use_dora", "target_parameters", "trainable_token_indices"),
)
"""What decides which weights an adapter has, and of what size."""
_OF_THE_MODEL = ("name", "revision", "subfolder", "auto_class", "num_labels")


def why_not_warm(
    experiment: Experiment, number: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> str | None:
    """Return why a clone cannot start from its parent's weights; None where nothing is known against it.

    Args:
        experiment: theirs.
        number: the parent's.
        before: the parent's configuration, resolved.
        after: the clone's.
    """
    for section, keys in (("model", _OF_THE_MODEL), ("peft", _OF_THE_ADAPTER)):
        one, other = before.get(section) or {}, after.get(section) or {}
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            continue
        if bool(one) != bool(other):
            which = f"run {number} has" if one else "the clone would have"
            return f"A warm start needs the architecture of run {number}, and only {which} an adapter."
        for key in keys:
            if one.get(key) != other.get(key):
                return (
                    f"A warm start needs the architecture of run {number}, adapters included: {section}.{key} is "
                    f"{one.get(key)!r} there and would be {other.get(key)!r}. Leave it as it is, or start cold."
                )
    runs = experiment.status().get("runs") or []
    run: Mapping[str, Any] = next((run for run in runs if run["number"] == number), {})
    has_weights = experiment.run(number).weights.is_file()
    if not has_weights and run.get("state") not in ("queued", "running"):
        return f"Run {number} has no weights to start from: it has not reached a chunk boundary."
    if not has_weights and not run.get("slot") and run.get("state") == "queued":
        return f"Run {number} has not trained yet, so it has no weights to start from. Clone it cold, or later."
    return None
