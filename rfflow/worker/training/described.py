"""What a configuration class takes, as plain values: names, types, defaults and help."""

from __future__ import annotations

import enum
import json
import re
import typing
from dataclasses import MISSING, Field, fields
from typing import Any

from rfflow.worker.training.arguments import choices_of, plain_types


def described(cls: type) -> dict[str, dict[str, Any]]:
    """Return the arguments of a dataclass as :class:`rfflow.tracking.arguments.ArgumentsFile` has them."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # some library annotated with a name that it does not import
        hints = {}
    return {field.name: _described(field, hints.get(field.name, field.type)) for field in fields(cls) if field.init}


def _described(field: Field[Any], hint: Any) -> dict[str, Any]:
    return {
        "type": _written(hint),
        "takes": sorted(kind.__name__ for kind in plain_types(hint)),
        "choices": sorted(choices_of(hint)),
        "default": _default(field),
        "help": " ".join(str(field.metadata.get("help", "")).split()),
    }


def _written(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _default(field: Field[Any]) -> Any:
    """Return the default as JSON has it, or its text; None where there is none, or none that is known before."""
    value = None if field.default is MISSING else field.default
    if isinstance(value, enum.Enum):
        value = value.value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value
