"""Reward functions by dotted path or file, tried on a few rows before any training."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl.trainer.utils import is_async_callable

from rfflow.config.spec import Node
from rfflow.config.targets import import_object, make_object, resolve_function
from rfflow.errors import ConfigError, RunFailed
from rfflow.worker.rewards.models import reward_model, try_reward_model
from rfflow.worker.training.context import unmoved_random_state

WHERE = "trainer.reward_funcs"
_TRIED_ROWS = 4
_TRIED_COMPLETION = "The answer is 42."


def load_rewards(nodes: Node | str | Sequence[Node | str], model_kwargs: Node | None = None) -> list[Any]:
    """Return the reward functions that a config names.

    Each is a dotted path, ``file.py:function``, a node with either as its ``_target_`` and arguments beside it, or, as
    TRL has it, the name of a reward model (a hub name or folder, which has a slash in it).

    Args:
        nodes: what the config says.
        model_kwargs: what ``from_pretrained`` is given for reward models.

    Raises:
        ConfigError: naming the one that is not there.
    """
    if isinstance(nodes, str | Mapping):
        nodes = [nodes]
    if not nodes:
        raise ConfigError(f"{WHERE} is empty. Give at least one function, such as [rfflow.rewards.correct_answer].")
    return [_load(node, f"{WHERE}[{index}]", model_kwargs or {}) for index, node in enumerate(nodes)]


def _load(node: Node | str, where: str, model_kwargs: Node) -> Any:
    target = node.get("_target_") if isinstance(node, Mapping) else node
    if not isinstance(target, str) or not target:
        raise ConfigError(f"{where} is {node!r}. Give a dotted path, file.py:function, or either as _target_.")
    function: Any
    if names_reward_model(node):
        function = reward_model(target, where, model_kwargs)
    elif _makes_something(import_object(target, where)):
        function = make_object(node if isinstance(node, Mapping) else {"_target_": target}, where)
    else:
        function = resolve_function(node, where)
    if isinstance(function, PreTrainedModel):
        return function
    if isinstance(function, torch.nn.Module):
        raise ConfigError(
            f"{where} is a {type(function).__name__}, a module that transformers does not know. Allowed: functions, "
            "and models for sequence classification. A function may ask the module."
        )
    return AsyncReward(function) if is_async_callable(function) else Reward(function)


def names_reward_model(node: Any) -> bool:
    """Whether one of the reward functions is a model: it has a slash in its name, and is no file of Python."""
    target = node.get("_target_") if isinstance(node, Mapping) else node
    return isinstance(target, str) and "/" in target and not target.rpartition(":")[0].endswith(".py")


def _makes_something(found: Any) -> bool:
    """Whether it is called once, for what it returns, and not as the reward function itself."""
    return inspect.isclass(found) or getattr(found, "__name__", "") == "from_pretrained"


class Reward:
    """A reward function that says in a sentence what it did wrong."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        """TRL logs the reward under this name."""

    def __call__(self, **given: Any) -> list[float | None]:
        """Return a reward for every completion, ``None`` where the function has nothing to say.

        Raises:
            RunFailed: if the function raises or returns something else.
        """
        try:
            rewards = self._function(**given)
        except Exception as error:
            raise self._raised(error, given) from error
        return self._checked(rewards, len(given["completions"]))

    def _raised(self, error: Exception, given: Mapping[str, Any]) -> RunFailed:
        columns = [key for key in given if key not in _ALWAYS_GIVEN]
        return RunFailed(
            f"The reward function {self.__name__} raised {type(error).__name__}: {error}. It was called with "
            f"{len(given['completions'])} completions and the columns {', '.join(columns) or '(none)'}."
        )

    def _checked(self, rewards: Any, count: int) -> list[float | None]:
        if isinstance(rewards, torch.Tensor):
            rewards = rewards.tolist()
        if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != count:
            size = f"{len(rewards)} values" if isinstance(rewards, Sequence) else f"{rewards!r}"
            raise RunFailed(
                f"The reward function {self.__name__} returned {size} for {count} completions. "
                "It must return a list with a number (or None) for each."
            )
        for index, reward in enumerate(rewards):
            if reward is not None and not isinstance(reward, int | float) and not hasattr(reward, "__float__"):
                raise RunFailed(
                    f"The reward function {self.__name__} returned {reward!r} for completion {index} (from 0). "
                    "Allowed: a number, or None."
                )
        if any(reward is not None for reward in rewards) and all(_is_nan(reward) for reward in rewards):
            raise RunFailed(
                f"The reward function {self.__name__} returned NaN for all of {count} completions: nothing can be "
                "learned from that. Return None where it has nothing to say."
            )
        return list(rewards)


class AsyncReward(Reward):
    """One that is awaited; TRL lets all of them wait at the same time."""

    async def __call__(self, **given: Any) -> list[float | None]:  # type: ignore[override] # TRL looks for the async
        """Do what :class:`Reward` does."""
        try:
            rewards = await self._function(**given)
        except Exception as error:
            raise self._raised(error, given) from error
        return self._checked(rewards, len(given["completions"]))


_ALWAYS_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def try_rewards(functions: Sequence[Any], rows: Dataset, device: torch.device) -> None:
    """Call each function once, on a few rows and a made-up answer, as the trainer will.

    Raises:
        ConfigError: if one cannot reward a completion, or none of them rewards any.
    """
    step = max(len(rows) // _TRIED_ROWS, 1)
    tried = rows[: step * _TRIED_ROWS : step]
    prompts = tried.get("prompt", [])
    if not prompts:
        return  # the trainer says what it misses
    completions: list[Any] = [
        [{"role": "assistant", "content": _TRIED_COMPLETION}] if isinstance(prompt, list) else _TRIED_COMPLETION
        for prompt in prompts
    ]
    given: dict[str, Any] = {key: values for key, values in tried.items() if key not in ("prompt", "completion")}
    given |= {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [[0] for _ in prompts],
        "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }
    said_something = False
    for index, function in enumerate(functions):
        with unmoved_random_state(device):
            if isinstance(function, PreTrainedModel):
                try_reward_model(function, f"{WHERE}[{index}]", prompts, completions, device)
                said_something = True
                continue
            try:
                rewards = _awaited(function(**given)) if isinstance(function, AsyncReward) else function(**given)
            except RunFailed as error:
                raise ConfigError(f"{WHERE}: {error} (Tried before training on {_TRIED_COMPLETION!r}.)") from error
        said_something |= any(reward is not None for reward in rewards)
    if not said_something:
        names = ", ".join(function.__name__ for function in functions)
        raise ConfigError(
            f"{WHERE}: {names} returned None for every one of {len(prompts)} rows, spread over the data set, so there "
            f"is nothing to learn. (Tried before training on {_TRIED_COMPLETION!r}.)"
        )


def _awaited(coroutine: Coroutine[Any, Any, list[float | None]]) -> list[float | None]:
    """Wait for it in a thread of its own: in a notebook there is a loop already in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _is_nan(reward: Any) -> bool:
    return reward is None or math.isnan(float(reward))
