"""What a trainer asks of its model again and again, remembered: the walks through all its modules.

In every step a trainer puts the model into training mode, counts its parameters, clips and clears their gradients, and
each time walks through thousands of modules to find what it has found before. Here the answers are kept for as long as
the model is made of the same modules and parameters, which takes a twentieth of the walk to check.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from transformers import PreTrainedModel

_PLAIN_TRAIN = (torch.nn.Module.train, PreTrainedModel.train)
"""What sets the flag and, where that was set already, does nothing else."""


def remember_walks(model: torch.nn.Module) -> None:
    """Let a model remember what ``parameters()``, ``named_parameters()``, ``train()``, ``num_parameters()`` have found.

    The methods are replaced on this object alone. They return what they returned before, to the order, also when
    modules or parameters are added, replaced or taken away meanwhile. A copy of the model has methods of its own again.
    """
    walks = Walks(model)
    replace_method(model, "parameters", walks.parameters)
    replace_method(model, "named_parameters", walks.named_parameters)
    replace_method(model, "train", walks.train)
    counted = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if counted is not None:
        walks = walks if counted is model else Walks(counted)
        replace_method(counted, "num_parameters", walks.num_parameters)


class Walks:
    """The modules and parameters of one model.

    Args:
        model: is not kept alive.
    """

    def __init__(self, model: torch.nn.Module):
        self._model = weakref.ref(model)
        self._registers: list[dict[str, Any]] = []
        """The dictionaries in which the modules keep their own modules and parameters."""
        self._seen: list[int] = []
        """The ids of all that was in them; what they belong to is kept alive, so that none is given away."""
        self._modules: list[torch.nn.Module] = []
        """Without the model itself, so that nothing here keeps it alive."""
        self._parameters: list[torch.nn.Parameter] = []
        self._filled: list[dict[str, Any]] = []
        """Those of the dictionaries in which there was something."""
        self._names: list[str] = []
        """What that was called there."""
        self._named: list[tuple[str, torch.nn.Parameter]] = []
        self._has_plain_modes = False
        self._counts: dict[Hashable, int] = {}

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """As ``torch.nn.Module.parameters``."""
        if not recurse:
            return _plain(self._owner, "parameters")(recurse=False)
        self._look()
        return iter(self._parameters)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """As ``torch.nn.Module.named_parameters``."""
        if prefix or not recurse or not remove_duplicate:
            return _plain(self._owner, "named_parameters")(prefix, recurse, remove_duplicate)
        self._look()
        names = list(chain.from_iterable(self._filled))
        if not self._named or self._names != names:
            self._named, self._names = list(_plain(self._owner, "named_parameters")()), names
        return iter(self._named)

    def train(self, mode: bool = True) -> torch.nn.Module:
        """As ``torch.nn.Module.train``."""
        model = self._owner
        self._look()
        if self._has_plain_modes and model.training is mode and self._modes() <= {mode}:
            return model
        return _plain(model, "train")(mode)

    def num_parameters(self, *args: Any, **kwargs: Any) -> int:
        """As ``PreTrainedModel.num_parameters``."""
        self._look()
        sizes = tuple((parameter.numel(), parameter.requires_grad) for parameter in self._parameters)
        key = (sizes, args, tuple(sorted(kwargs.items())))
        if key not in self._counts:
            self._counts = {key: _plain(self._owner, "num_parameters")(*args, **kwargs)}
        return self._counts[key]

    @property
    def _owner(self) -> torch.nn.Module:
        model = self._model()
        assert model is not None, "the model is gone"
        return model

    def _modes(self) -> set[bool]:
        return set(map(attrgetter("training"), self._modules))

    def _look(self) -> None:
        """Walk, unless all that was there is there, and nothing else."""
        if self._registers and self._seen == self._ids():
            return
        model = self._owner
        modules = list(model.modules())
        self._registers = [register for module in modules for register in (module._modules, module._parameters)]
        self._filled = [register for register in self._registers if register]
        self._seen, self._named = self._ids(), []
        self._modules = modules[1:]
        self._parameters = list(_plain(model, "parameters")())
        self._counts = {}
        # DoRA's layers, for one, forget what they have computed whenever they are told to train.
        self._has_plain_modes = type(model).train in _PLAIN_TRAIN and all(
            type(module).train in _PLAIN_TRAIN and "train" not in vars(module) for module in self._modules
        )

    def _ids(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(dict.values, self._registers))))


class _Method:
    """Stands on a model in place of one of its class's methods."""

    def __init__(self, model: torch.nn.Module, name: str, function: Callable[..., Any]):
        self._model = weakref.ref(model)
        self._name = name
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._model()))
        return self if copied is None else _plain(copied, self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (self._model(), self._name)


def replace_method(model: torch.nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Put a function in place of a method of this object alone; a copy of the model has its class's again."""
    if name not in vars(model):  # nor is it touched where somebody else has replaced it
        setattr(model, name, _Method(model, name, function))


def _plain(model: Any, name: str) -> Any:
    """Return the method as the model's class has it."""
    return types.MethodType(getattr(type(model), name), model)
