"""Trainers that generate what they train on: where they may be cut, and how much of the time it takes."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import RepeatSampler


def cycle_steps(args: TrainingArguments) -> int:
    """Return the optimizer steps after which a trainer has used up what it generated.

    GRPO and RLOO generate once for ``steps_per_generation * num_iterations`` forward passes, and an optimizer step
    takes ``gradient_accumulation_steps`` of them. Every other trainer may be cut after each step.
    """
    passes = getattr(args, "steps_per_generation", None)
    if passes is None:
        return 1
    passes *= getattr(args, "num_iterations", 1)
    return passes // math.gcd(passes, args.gradient_accumulation_steps)


def skip_epochs(dataloader: Any, epochs: int) -> None:
    """Let the prompts of a resumed run come in the order of the epoch that it is in.

    TRL's sampler draws each epoch's order from a generator of its own, which Hugging Face's resume does not know of.
    """
    sampler = dataloader
    while sampler is not None and not isinstance(sampler, RepeatSampler):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is not None and sampler.shuffle:
        for _ in range(epochs):
            torch.randperm(sampler.num_samples, generator=sampler.generator)


class GenerationClock:
    """Measures how long a trainer generates, where it is one that does."""

    def __init__(self, trainer: Trainer):
        self.seconds = 0.0
        generate = getattr(trainer, "_generate", None)
        self.is_running = callable(generate)
        if callable(generate):
            trainer._generate = functools.wraps(generate)(functools.partial(self._time, generate))

    def _time(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return generate(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started
