"""Reward models begin with the head that TRL alone would have drawn."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer


@contextlib.contextmanager
def seeded_as_if_loaded(trainer_class: type[Trainer], model: PreTrainedModel) -> Iterator[None]:
    """Let a reward trainer built inside find the random generator where it would be if it had loaded the model itself.

    TRL seeds, draws the new head while it loads, and draws the adapter next. Ours has been loaded, with ``head_seed``.
    """
    owner = next((cls for cls in trainer_class.__mro__ if cls.__name__ == "RewardTrainer"), None)
    module: Any = sys.modules[owner.__module__] if owner else None
    if module is None or not hasattr(module, "set_seed"):
        yield
        return
    set_seed = module.set_seed

    def seed_and_draw(seed: int, *given: Any, **named: Any) -> None:
        set_seed(seed, *given, **named)
        torch.set_rng_state(model.rfflow_random_state)

    module.set_seed = seed_and_draw
    try:
        yield
    finally:
        module.set_seed = set_seed
