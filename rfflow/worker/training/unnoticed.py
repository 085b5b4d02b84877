"""rfflow's own evaluations, of which the run must not notice anything.

They are what a trainer, its model, its optimizer and whatever a user hangs on them are made for, so all of those may
remember that they took place: counts, running means, caches, modes, generators of random numbers. Instead of a list of
what is known to remember, everything within reach is as it was when the evaluation is over.
"""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer_utils import TrainerMemoryTracker

from rfflow.worker.training.context import unmoved_random_state

Restore = Callable[[], None]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)
_DEPTH = 4
"""How deep containers lie in each other: TRL's ``_logs`` and ``_metrics`` need three."""
_ROWS = ("train_dataset", "eval_dataset", "log_history")
"""What may be long, and is read only or replaced."""
_STATELESS = (str, bytes, int, float, complex, type(None), type, torch.Tensor)


@contextlib.contextmanager
def unnoticed(trainer: Trainer, callback: TrainerCallback) -> Iterator[None]:
    """Let rfflow evaluate or generate without a trace in the run.

    A user's EarlyStoppingCallback, for one, must count the user's evaluations and not ours.

    Args:
        trainer: one that is between two steps, or has ended.
        callback: the only one to hear of what happens inside.
    """
    restores = [_remember(each) for each in _within_reach(trainer)]
    restores += [_remember_module(module) for model in _models(trainer) for module in model.modules()]
    trainer.callback_handler.callbacks = [callback]
    trainer.control = TrainerControl()
    trainer.state.log_history = []
    trainer._memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)
    # Behind the last step, too: a trainer that doesn't train casts the model, for good, where bf16_full_eval is set.
    trainer.is_in_train = True
    try:
        with unmoved_random_state(trainer.args.device), _unmoved_optimizer(trainer):
            yield
    finally:
        for restore in reversed(restores):
            restore()


def _within_reach(trainer: Trainer) -> Iterator[Any]:
    """Return what may remember an evaluation, the user's objects among it."""
    accelerator = trainer.accelerator
    yield from (trainer, trainer.args, trainer.state, trainer.callback_handler, accelerator)
    yield getattr(accelerator, "gradient_state", None)
    tokenizer = trainer.processing_class
    yield from (tokenizer, _Backend(getattr(tokenizer, "_tokenizer", None)))
    called = ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "data_collator")
    functions = [getattr(trainer, name, None) for name in called]
    for function in (*functions, *(getattr(trainer, "reward_funcs", None) or ())):
        yield from (function, getattr(function, "__self__", None), getattr(function, "func", None))


def _models(trainer: Trainer) -> Iterator[torch.nn.Module]:
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if isinstance(model, torch.nn.Module):
            yield model


def _remember(thing: Any) -> Restore:
    """Return what gives an object its attributes back, and what is in them."""
    if isinstance(thing, _Backend):
        return thing.restore
    attributes = getattr(thing, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(thing, type):
        return _nothing
    before = dict(attributes)
    inside = [_contents(value, _DEPTH) for name, value in before.items() if name not in _ROWS]

    def restore() -> None:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        for name, value in before.items():
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value
        for give_back in inside:
            give_back()

    return restore


def _contents(value: Any, depth: int) -> Restore:
    """Return what gives a container, or a generator of random numbers, back what is in it now."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _ignore(value.set_state(state))
    if isinstance(value, random.Random):
        numbers = value.getstate()
        return lambda: value.setstate(numbers)
    if isinstance(value, numpy.random.Generator | numpy.random.RandomState):
        return _numpy_state(value)
    if type(value) not in _CONTAINERS or depth == 0:
        return _nothing
    before = value.copy()
    members: Iterable[Any] = before.values() if isinstance(before, dict) else before
    inside = [_contents(member, depth - 1) for member in members if not isinstance(member, _STATELESS)]

    def restore() -> None:
        value.clear()
        value.extend(before) if isinstance(value, list | deque) else value.update(before)
        for give_back in inside:
            give_back()

    return restore


def _numpy_state(value: numpy.random.Generator | numpy.random.RandomState) -> Restore:
    if isinstance(value, numpy.random.RandomState):
        state = value.get_state()
        return lambda: value.set_state(state)
    bits = value.bit_generator.state

    def restore() -> None:
        value.bit_generator.state = bits

    return restore


class _Backend:
    """How a fast tokenizer pads and truncates, which each call settles anew and ``save_pretrained`` writes down."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._before = None if tokenizer is None else self._settings()

    def restore(self) -> None:
        if self._before is None or self._settings() == self._before:
            return
        padding, truncation = self._before
        self._tokenizer.no_padding() if padding is None else self._tokenizer.enable_padding(**padding)
        self._tokenizer.no_truncation() if truncation is None else self._tokenizer.enable_truncation(**truncation)

    def _settings(self) -> tuple[Any, Any]:
        return getattr(self._tokenizer, "padding", None), getattr(self._tokenizer, "truncation", None)


def _remember_module(module: torch.nn.Module) -> Restore:
    """Return what gives a module its mode and its buffers back, and what it keeps between two calls.

    Rotary embeddings, for one, grow with the longest sequence seen.
    """
    attributes = module.__dict__
    before, buffers = dict(attributes), dict(module._buffers)

    def restore() -> None:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)
        if not _are_same(module._buffers, buffers):
            module._buffers.clear()
            module._buffers.update(buffers)

    return restore


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


# --- the optimizer ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _unmoved_optimizer(trainer: Trainer) -> Iterator[None]:
    """Let an evaluation switch a copy of the optimizer, where it is one that moves weights for it (schedule-free).

    The way there and back is not exact in floating point, so that the weights are put back as they were.
    """
    optimizer = trainer.optimizer
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not (callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None))):
        yield
        return
    weights = [(weight, weight.detach().clone()) for group in inner.param_groups for weight in group["params"]]
    states = [tensor for state in inner.state.values() for tensor in _tensors(state)]
    versions = [tensor._version for tensor in states]
    trainer.optimizer = _apart(optimizer, {})
    try:
        yield
    finally:
        if versions != [tensor._version for tensor in states]:  # it keeps other weights in there, and gives them back
            trainer.optimizer.train()
        trainer.optimizer = optimizer
        with torch.no_grad():
            for weight, value in weights:
                weight.copy_(value)


def _apart(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an optimizer, and of all containers in it, that shares its tensors and all else."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, torch.optim.Optimizer):
        memo[id(value)] = copied = object.__new__(type(value))
        copied.__dict__.update({name: _apart(each, memo) for name, each in vars(value).items()})
        return copied
    if type(value) in _CONTAINERS:
        memo[id(value)] = copied = value.copy()
        copied.clear()
        if isinstance(copied, dict):
            copied.update({key: _apart(each, memo) for key, each in value.items()})
        elif isinstance(copied, set):
            copied.update(value)
        else:
            copied.extend(_apart(each, memo) for each in value)
        return copied
    return value


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    for value in state.values() if isinstance(state, dict) else ():
        if isinstance(value, torch.Tensor):
            yield value


def _nothing() -> None: ...


def _ignore(value: Any) -> None: ...
