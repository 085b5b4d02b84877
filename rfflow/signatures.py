"""Does a function or class take the arguments that stand beside its ``_target_``? Asked before it is called."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object

from rfflow.confidential import HIDDEN, is_secret
from rfflow.errors import ConfigError, nearest

_HYDRAS_OWN = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def check_arguments(function: Callable[..., Any], node: Mapping[str, Any], where: str) -> None:
    """Check the keys of a node against what the function takes.

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
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
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
