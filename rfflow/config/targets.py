"""Does a function or class take the arguments that stand beside its ``_target_``? Asked before it is called."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from rfflow.confidential import HIDDEN, is_secret
from rfflow.config.paths import existing_path, listing
from rfflow.config.spec import Node
from rfflow.errors import ConfigError, nearest

_HYDRAS_OWN = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def check_arguments(
    function: Callable[..., Any], node: Mapping[str, Any], where: str, besides: Sequence[str] = ()
) -> None:
    """Check the keys of a node against what the function takes, and besides it whoever hands them on.

    A function that takes any keyword has them all, unless it shows by the name, as in ``**_``, that it passes over
    them. Nothing is known of some that are written in C.

    Raises:
        ConfigError: naming the key, its value, and what the function takes.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    if any(parameter.kind is parameter.VAR_KEYWORD and not parameter.name.startswith("_") for parameter in parameters):
        return
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    named = [*besides, *(name for name in taken if name not in ("self", *besides))]
    for key, value in node.items():
        if key not in named and key not in _HYDRAS_OWN:
            hint = nearest(key, named)
            # A recipe's own stay where only its function was replaced by another.
            way_out = "" if hint or "[" in where else f" To take it out: ~{where}.{key}"
            seen = HIDDEN if is_secret(key) else repr(value)
            raise ConfigError(
                f"{where}.{key} is {seen}, but {node['_target_']} takes no {key!r}.{hint} "
                f"Its arguments: {', '.join(named) or 'none'}.{way_out}"
            )


def check_node(node: Mapping[str, Any], where: str) -> None:
    """Check the keys of a node whose ``_target_`` may not be there; whoever instantiates it says so better."""
    found = None
    with contextlib.suppress(Exception):
        found = get_object(str(node.get("_target_")))
    if callable(found):
        check_arguments(found, node, where)


def resolve_function(node: Node | str, where: str = "_target_") -> Callable[..., Any]:
    """Return the function that a dotted path, ``file.py:function``, or a node with either as ``_target_``, names.

    The node's other keys become keyword arguments of the function. Modules in the current directory are found too.

    Raises:
        ConfigError: if it cannot be imported, is not callable, does not take what stands beside it, or is one that
            Hydra refuses to take from a config.
    """
    node = {"_target_": node} if isinstance(node, str) else dict(node)
    target = node.get("_target_")
    if not isinstance(target, str) or not target:
        raise ConfigError(
            f"{where} is {target!r}. Give the dotted path of a function, such as my_module.my_function, or "
            "file.py:function."
        )
    function = import_object(target, where)
    if not callable(function):
        raise ConfigError(f"{where}: {target} is of type {type(function).__name__}, not a function.")
    try:
        deferred = instantiate({**_for_hydra(node, function), "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    check_arguments(function, node, where)
    # What Hydra returns checks its target at every call, which costs half a millisecond: too much for a row of data.
    if not deferred.args and not deferred.keywords:
        return function
    bound = functools.partial(function, *deferred.args, **deferred.keywords)
    bound.__name__ = getattr(function, "__name__", target)  # type: ignore[attr-defined] # trainers log it
    return bound


def make_object(node: Node, where: str, **kwargs: Any) -> Any:
    """Return what the class, or function, that a node names returns; the node's other keys are its arguments.

    Args:
        node: with a dotted path or ``file.py:name`` as its ``_target_``.
        where: where it stands in the configuration.
        kwargs: arguments that no configuration can give.

    Raises:
        ConfigError: if it cannot be imported, does not take the arguments, or raises.
    """
    target = str(node.get("_target_"))
    maker = import_object(target, where)
    if not callable(maker):
        raise ConfigError(f"{where}: {target} is of type {type(maker).__name__}, neither a class nor a function.")
    check_arguments(maker, node, where)
    try:
        return instantiate(_for_hydra(node, maker), **kwargs, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{where}: cannot make {target}: {type(cause).__name__}: {cause}") from error


def _for_hydra(node: Node, found: Any) -> dict[str, Any]:
    """Return the node as Hydra takes it: it knows no files, and looks at dotted paths before it lets them pass."""
    return {**node, "_target_": found if _file_and_name(str(node["_target_"])) else node["_target_"]}


def import_object(path: str, where: str = "_target_") -> Any:
    """Return what a dotted path, or ``file.py:name``, names, also from modules in the current directory.

    Raises:
        ConfigError: if there is no such thing, with the nearest names, or if its module raises while it is imported.
    """
    if in_file := _file_and_name(path):
        return _from_file(*in_file, where)
    _make_current_directory_importable()
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{where} is {path!r}, which is not a dotted path such as my_module.my_function.")
    found: Any = _import_module(parts[0], path, where)
    for index, part in enumerate(parts[1:], start=1):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        if isinstance(found, ModuleType) and hasattr(found, "__path__"):
            found = _import_module(".".join(parts[: index + 1]), path, where)
            continue
        owner = ".".join(parts[:index])
        names = [name for name in dir(found) if not name.startswith("_")]
        raise ConfigError(f"{where} is {path!r}, but {owner} has no {part!r}.{nearest(part, names) or _offer(names)}")
    return found


def _file_and_name(path: str) -> tuple[str, str] | None:
    file, colon, name = path.rpartition(":")
    return (file, name) if colon and file.endswith(".py") else None


def _from_file(file: str, name: str, where: str) -> Any:
    path = existing_path(file, where).resolve()
    # A name of the path alone, the same in every process: functions are pickled, and rows remembered, by it.
    module_name = f"rfflow_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's own file may raise anything
            del sys.modules[module_name]
            raise ConfigError(f"{where}: importing {file} fails: {type(error).__name__}: {error}.") from error
    function = getattr(sys.modules[module_name], name, None)
    if not callable(function):
        kinds = (inspect.isfunction, inspect.isclass)
        names = [key for key, value in vars(sys.modules[module_name]).items() if any(kind(value) for kind in kinds)]
        raise ConfigError(
            f"{where} is {file}:{name}, but there is no function or class {name!r}.{nearest(name, names)} "
            f"There: {listing(names)}."
        )
    return function


def _import_module(name: str, path: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module is there, but imports one that is not
            raise ConfigError(f"{where} is {path!r}, but importing {name} fails: {error}.") from error
        parent, _, last = name.rpartition(".")
        if parent:
            package = importlib.import_module(parent)
            names = {module.name for module in pkgutil.iter_modules(package.__path__)} | set(vars(package))
            names = {name for name in names if not name.startswith("_")}
            hint = nearest(last, names) or _offer(names)
            raise ConfigError(f"{where} is {path!r}, but {parent} has no {last!r}.{hint}") from None
        local = [file.stem for file in Path.cwd().glob("*.py")]
        installed = set(sys.modules) | {module.name for module in pkgutil.iter_modules()}
        hint = nearest(last, {name for name in {*local, *installed} if "." not in name})
        raise ConfigError(
            f"{where} is {path!r}, but there is no module {name!r}, neither installed nor in {Path.cwd()}.{hint}"
        ) from None
    except Exception as error:  # a user's own module may raise anything
        raise ConfigError(
            f"{where} is {path!r}, but importing {name} fails: {type(error).__name__}: {error}."
        ) from error


def _offer(names: Iterable[str]) -> str:
    return f" There: {listing(sorted(names))}."


def _make_current_directory_importable() -> None:
    """`python -m` puts it on the path, the console script does not. Last, so that it hides no installed module."""
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def instantiate_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values with every node that has a ``_target_`` made into its object."""
    return {
        key: make_object(value, f"{where}.{key}") if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in values.items()
    }
