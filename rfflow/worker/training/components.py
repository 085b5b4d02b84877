"""What a trainer is made with besides its model, arguments and rows: functions it calls, classes, objects.

What a configuration's text or node has to become is read off the annotation of the trainer's own argument, so that one
that a library or a user adds tomorrow is made as well as those of today.
"""

from __future__ import annotations

import collections.abc
import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin, Trainer, TrainerCallback
from transformers.utils import get_json_schema

from rfflow.config.spec import Node
from rfflow.config.targets import import_object, make_object, resolve_function
from rfflow.errors import ConfigError
from rfflow.worker.models.loading import load_tokenizer

OURS: Mapping[str, str] = types.MappingProxyType(
    {
        "model": "The model is the section model: model.name=..., and every other argument of from_pretrained.",
        "model_init": "The model is loaded by the section model: model.name=..., once for all runs that share it.",
        "quantization_config": "The model is loaded by the section model: model=qlora, or model.quantization_config.",
        "processing_class": "The tokenizer is model.tokenizer=...; without it, the one beside the model.",
        "tokenizer": "The tokenizer is model.tokenizer=...; without it, the one beside the model.",
        "peft_config": "The adapter is the section peft: peft.r=8, peft._target_=...",
        "train_dataset": "The rows are the section dataset: dataset.path=..., dataset.name=...",
        "eval_dataset": "The rows are the section dataset: dataset.eval_path, dataset.eval_split or dataset.eval_size.",
        "optimizers": (
            "Its objects are made of the model's weights, which a configuration has not. Name an optimizer by "
            "trainer.args.optim or, where the trainer takes it, a class by trainer.optimizer_cls_and_kwargs; a "
            "schedule by trainer.args.lr_scheduler_type."
        ),
    }
)
"""Arguments of trainers that rfflow gives, and where they are said instead."""


class Role(enum.Enum):
    """What a trainer does with an argument."""

    CALLED = "it calls it"
    FACTORY = "it calls it without arguments, for what it returns"
    CLASS = "it makes an object of it, with arguments that stand beside it"
    OBJECT = "it uses it as it is"
    UNKNOWN = "nobody says"


def parameters_of(trainer_class: type[Trainer]) -> dict[str, inspect.Parameter]:
    """Return what a trainer is made with; one of a user's own may hand most of it on to TRL's by ``**kwargs``.

    An argument that a class takes without saying what it is keeps the annotation that it has further up.
    """
    parameters: dict[str, inspect.Parameter] = {}
    reaches = True
    for cls in trainer_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        own = _signature(vars(cls)["__init__"])
        for name, parameter in own.items():
            if name in parameters and parameters[name].annotation is inspect.Parameter.empty:
                parameters[name] = parameters[name].replace(annotation=parameter.annotation)
            elif reaches:
                parameters.setdefault(name, parameter)
        reaches = reaches and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in own.values())
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL) and name != "self"
    }


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # a name that only type checkers import
        return inspect.signature(function).parameters


def role_of(annotation: Any) -> Role:
    """Return what a trainer does with an argument that is annotated so."""
    if annotation in (inspect.Parameter.empty, Any):
        return Role.UNKNOWN
    if isinstance(annotation, str):
        if re.search(r"Callable\[\s*\[\s*\]", annotation):
            return Role.FACTORY
        return Role.CALLED if "Callable" in annotation else Role.OBJECT
    leaves = list(_leaves(annotation))
    for leaf in leaves:
        if _is_callable(leaf):
            return Role.FACTORY if typing.get_args(leaf)[:1] == ([],) else Role.CALLED
    if any(typing.get_origin(leaf) is tuple and typing.get_origin(typing.get_args(leaf)[0]) is type for leaf in leaves):
        return Role.CLASS
    return Role.OBJECT


def _leaves(annotation: Any) -> Iterator[Any]:
    """Go through unions, and through lists and dictionaries by name of something."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, list, dict):
        for part in typing.get_args(annotation):
            yield from _leaves(part)
    else:
        yield annotation


def _is_callable(leaf: Any) -> bool:
    return leaf is collections.abc.Callable or typing.get_origin(leaf) is collections.abc.Callable


def _takes(annotation: Any, *kinds: type) -> bool:
    return any(isinstance(leaf, type) and issubclass(leaf, kinds) for leaf in _leaves(annotation))


def make_component(
    key: str, value: Any, parameter: inspect.Parameter, tokenizer: PreTrainedTokenizerBase, learning_rate: float
) -> Any:
    """Turn what stands in ``trainer`` under a key into what the trainer's argument of that name wants.

    Args:
        key: the argument.
        value: a dotted path, ``file.py:name``, a node with either as ``_target_``, lists and dictionaries of them, or a
            plain value.
        parameter: as the trainer declares it.
        tokenizer: the run's, for what is made with one.
        learning_rate: of an optimizer's class that is given without one.

    Raises:
        ConfigError: if it cannot be made, or is nothing that the trainer could use.
    """
    role, where = role_of(parameter.annotation), f"trainer.{key}"
    if role is Role.CLASS:
        return _class_and_arguments(value, where, learning_rate)
    make = functools.partial(_make, role=role, parameter=parameter, tokenizer=tokenizer)
    may_be_list = role in (Role.OBJECT, Role.UNKNOWN) or list in _origins(parameter.annotation)
    if isinstance(value, list) and may_be_list:
        return [make(item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and "_target_" not in value and dict in _origins(parameter.annotation):
        return {name: make(item, where=f"{where}.{name}") for name, item in value.items()}
    made = make(value, where=where)
    return [made] if _origins(parameter.annotation) == [list] else made


def _origins(annotation: Any) -> list[Any]:
    """Return which generic types an argument may be of, besides nothing."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if is_union else [annotation]
    return [typing.get_origin(part) for part in parts if part is not type(None)]


def _make(value: Any, role: Role, where: str, parameter: inspect.Parameter, tokenizer: PreTrainedTokenizerBase) -> Any:
    if role is Role.FACTORY:
        return resolve_function(_path_or_node(value, where), where)
    if role is Role.CALLED:
        return _function(_path_or_node(value, where), where, tokenizer)
    names_tokenizer = _takes(parameter.annotation, PreTrainedTokenizerBase, ProcessorMixin)
    if isinstance(value, str) and names_tokenizer and not _takes(parameter.annotation, str):
        return load_tokenizer(value, where)
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    if role is Role.UNKNOWN and not inspect.isclass(import_object(str(value["_target_"]), where)):
        return resolve_function(value, where)
    return _object(value, where, tokenizer)


def _path_or_node(value: Any, where: str) -> Node | str:
    if isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("_target_"), str)):
        return value
    raise ConfigError(
        f"{where} is {value!r}. Give the dotted path of a function, such as my_module.my_function, file.py:function, "
        "or either as _target_ with arguments beside it."
    )


def _function(node: Node | str, where: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Make something that a trainer calls: the function that is named, or an object of the class that is named."""
    node = {"_target_": node} if isinstance(node, str) else node
    if not inspect.isclass(import_object(str(node["_target_"]), where)):
        return _without_what_is_given(resolve_function(node, where))
    made = _object(node, where, tokenizer)
    if not callable(made):
        raise ConfigError(f"{where} is {node['_target_']!r}, which makes nothing that could be called.")
    return made


def _without_what_is_given(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function whose arguments are partly given look like one without those: a tool is shown to the model."""
    if not isinstance(function, functools.partial):
        return function
    functools.update_wrapper(function, function.func)
    signature = inspect.signature(function.func)
    left = [each for name, each in signature.parameters.items() if name not in function.keywords]
    function.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined] # inspect's own protocol
    hints = getattr(function.func, "__annotations__", {})
    function.__annotations__ = {name: hint for name, hint in hints.items() if name not in function.keywords}
    return function


def _object(node: Node, where: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Make an object; a collator, say, needs the run's own tokenizer."""
    target = import_object(str(node["_target_"]), where)
    given: dict[str, Any] = {}
    if inspect.isclass(target):
        takes = inspect.signature(target).parameters
        wanted = [name for name in ("processing_class", "tokenizer") if name in takes and name not in node]
        given = dict.fromkeys(wanted[:1], tokenizer)
    return make_object(node, where, **given)


def _class_and_arguments(value: Any, where: str, learning_rate: float) -> tuple[type, dict[str, Any]]:
    """Read a class with what its objects are made with: a node, or a pair as TRL has it."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        pair = len(value) == 2 and isinstance(value[1], Mapping)
        value = {"_target_": value[0], **(value[1] if pair else {})} if len(value) == 1 or pair else None
    node = {"_target_": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{where} is {value!r}. Give the dotted path of a class as _target_ and its arguments beside it, as in "
            "'{_target_: torch.optim.SGD, momentum: 0.9}'."
        )
    found = import_object(node["_target_"], where)
    if not inspect.isclass(found) or not issubclass(found, torch.optim.Optimizer):
        raise ConfigError(f"{where} is {node['_target_']!r}, which is not a subclass of torch.optim.Optimizer.")
    takes = inspect.signature(found).parameters
    arguments = {key: item for key, item in node.items() if key != "_target_"}
    if "lr" in takes:  # TRL alone would leave it at the class's own, and a sweep of lr would change nothing
        arguments.setdefault("lr", learning_rate)
    resolve_function({"_target_": node["_target_"], **arguments}, where)  # for its message
    return found, arguments


def make_callback(node: Node) -> TrainerCallback:
    """Make one of ``trainer.callbacks``.

    Raises:
        ConfigError: if it is not one that trainers know.
    """
    callback = make_object(node, "trainer.callbacks")
    if not isinstance(callback, TrainerCallback):
        raise ConfigError(
            f"trainer.callbacks: {node['_target_']} is not a transformers.TrainerCallback. What hears rfflow's own "
            f"events goes elsewhere: +callbacks.mine._target_={node['_target_']}"
        )
    return callback


def check_tools(trainer: Trainer) -> None:
    """Check that the model can be shown every tool, an environment's among them: TRL would see at the first step.

    Raises:
        ConfigError: naming the tool, and what its docstring or its annotations lack.
    """
    for tool in getattr(trainer, "tools", None) or []:
        name = getattr(tool, "__name__", None)
        owner = type(tool.__self__).__name__ if inspect.ismethod(tool) else None
        where = f"trainer.environment_factory: {owner}.{name}" if owner else f"trainer.tools: {name or repr(tool)}"
        if name is None:
            raise ConfigError(f"{where} has no name that the model could call it by. Give a function.")
        try:
            get_json_schema(tool)
        except Exception as error:
            raise ConfigError(
                f"{where} cannot be shown to the model: {' '.join(str(error).split())} A tool says in its docstring "
                "what it does and, under 'Args:', what each argument is, and annotates their types."
            ) from error
