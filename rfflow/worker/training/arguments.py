"""Are these the arguments of that dataclass? Names and plain types, checked before anything is built."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from rfflow.config.spec import AUTO
from rfflow.errors import ConfigError, nearest
from rfflow.worker.training.unread_arguments import GONE


def check_values(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Check ``values`` against the fields of the dataclass ``cls``.

    Types are checked where a field is declared with plain ones (``int``, ``float``, ``bool``, ``str`` and unions of
    them); what the class itself checks, and anything more involved, is left to it.

    Raises:
        ConfigError: naming the key, the value and the nearest names or the types allowed.
    """
    known = {field.name: field for field in fields(cls) if field.init}
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # some library annotated with a name that it does not import; its own checks remain
        hints = {}
    for key, value in values.items():
        if key not in known and where == "trainer.args" and key in GONE:
            raise ConfigError(f"{where}.{key} is not an argument of {cls.__name__} any more. {GONE[key]}")
        if key not in known:
            raise ConfigError(
                f"{where}.{key} is not an argument of {cls.__name__}.{nearest(key, known)} "
                f"All of them: python -c 'from {cls.__module__} import {cls.__name__} as C; help(C)'"
            )
        if value is None and hints.get(key) in (int, float):
            raise ConfigError(f"{where}.{key} is null. {cls.__name__} takes: {hints[key].__name__}.")
        if value is None or key not in hints:
            continue
        if key == "loss_type":
            _check_losses(known[key], value, where)
        choices = choices_of(hints[key])
        if choices and isinstance(value, str) and value not in choices:
            raise ConfigError(
                f"{where}.{key} is {value!r}.{nearest(value, choices)} Allowed: {', '.join(sorted(choices))}."
            )
        allowed = plain_types(hints[key])
        is_ours = where == "trainer.args" and key == "activation_checkpointing"
        if is_ours and value == AUTO:
            continue
        if allowed and not _fits(value, allowed):
            names = ", ".join(sorted(kind.__name__ for kind in allowed)) + (f", or {AUTO}" if is_ours else "")
            raise ConfigError(f"{where}.{key} is {value!r} ({type(value).__name__}). {cls.__name__} takes: {names}.")


def _check_losses(field: Field[Any], value: Any, where: str) -> None:
    """Check the losses that TRL lists in the argument's help and looks at only when the first is computed."""
    allowed = re.findall(r"(?<!\w)'(\w+)'(?!\w)", field.metadata.get("help", ""))
    if len(allowed) < 2 or "choices" in field.metadata:
        return
    for loss in [value] if isinstance(value, str) else value:
        if loss not in allowed:
            names = ", ".join(dict.fromkeys(allowed))
            raise ConfigError(f"{where}.loss_type is {loss!r}.{nearest(str(loss), allowed)} Allowed: {names}.")


def listed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with a single word made a list where ``cls`` takes only a list of words.

    So that ``loss_type=sigmoid,ipo`` is a sweep as people write it, and ``loss_type=[sigmoid,sft]`` a mix.
    """
    try:
        hints = typing.get_type_hints(cls)
    except Exception:
        return dict(values)
    return {
        key: [value] if isinstance(value, str) and plain_types(hints.get(key)) == {list} else value
        for key, value in values.items()
    }


def choices_of(hint: Any) -> set[str]:
    """Return the words a hint allows, where it names an enum or literals (``SchedulerType | str`` means the enum)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part not in (type(None), str)]
        return set().union(*map(choices_of, parts)) if all(map(choices_of, parts)) else set()
    if typing.get_origin(hint) is typing.Literal:
        return {value for value in typing.get_args(hint) if isinstance(value, str)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {str(member.value) for member in hint}
    return set()


_PLAIN = (bool, int, float, str, list, dict, tuple, set)


def plain_types(hint: Any) -> set[type]:
    """Return the plain types a hint allows, or nothing when it allows something else too."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [plain_types(part) for part in typing.get_args(hint) if part is not type(None)]
        return set().union(*parts) if all(parts) else set()
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(hint)}
    kind = origin or hint
    if kind in _PLAIN:
        return {kind}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {str}
    return set()


def _fits(value: Any, allowed: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int) and float in allowed:
        return True
    if isinstance(value, list) and allowed & {tuple, set}:
        return True
    return isinstance(value, tuple(allowed))
