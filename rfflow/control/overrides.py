"""What a clone may change: overrides in Hydra's own grammar, less whatever could name code.

Anyone who can write into the control directory can issue ops, so an op may change values and choose among the config
groups that exist, and no more. The rules hold for the text of an override; that the keys exist and the values fit is
found by composing the clone, and :mod:`rfflow.control.code` looks at what has come of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rfflow.confidential import redacted
from rfflow.config import spec
from rfflow.control.selection import shown
from rfflow.errors import OpError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

EXPERIMENT_KEYS = (*spec.EXPERIMENT_KEYS, "resume")
"""Top-level keys that all runs share: a clone cannot have its own."""
CODE_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_", "trust_remote_code")
"""Keys that say, at any depth, which code runs and how it is called."""
MAX_OVERRIDES = 100
MAX_LENGTH = 2000
MAX_DEPTH = 20
"""How deep lists and mappings may nest in a value: composing recurses."""
MAX_CLONES = 256
"""How many clones of one parent a sweep may make."""

# One plain reference to another value, and nothing else in the string. Resolvers could build a `_target_` out of text
# (oc.create does), and so could references glued together, because a node is resolved again when it is instantiated.
_REFERENCE = re.compile(r"\$\{\.*\w+(\.\w+)*\}")


def check(overrides: Sequence[str]) -> None:
    """Check that the overrides follow the grammar and touch only what a clone may change.

    Raises:
        OpError: naming the override and the reason.
    """
    expand(overrides)


def expand(overrides: Sequence[str], config_loader: Any = None) -> list[tuple[str, ...]]:
    """Return one tuple of plain overrides for every clone, in the order of Hydra's own sweeps: the last varies first.

    ``config_loader`` (Hydra's) is needed for ``glob()`` alone.

    Raises:
        OpError: as :func:`check`, and where a sweep cannot be enumerated or makes too many clones.
    """
    if len(overrides) > MAX_OVERRIDES:
        raise OpError(f"{len(overrides)} overrides in one op. Allowed: up to {MAX_OVERRIDES}.")
    choices: list[list[str]] = []
    seen: dict[str, str] = {}
    for text in overrides:
        override = _parse(text, config_loader)
        _check_key(text, override)
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise OpError(f"The overrides set {key} twice: {shown(seen[key])} and {shown(text)}.")
        seen[key] = text
        choices.append(_choices(text, override, config_loader))
    clones = list(itertools.islice(itertools.product(*choices), MAX_CLONES + 1))
    if len(clones) > MAX_CLONES:
        raise OpError(f"The sweep makes more than {MAX_CLONES} clones of a run: {shown(list(overrides))}.")
    return clones


def _parse(text: str, config_loader: Any) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(text) > MAX_LENGTH:
        raise OpError(f"An override is {len(text)} characters long: {shown(text)}. Allowed: up to {MAX_LENGTH}.")
    try:
        return OverridesParser.create(config_loader).parse_overrides([text])[0]
    except (HydraException, ValueError, ArithmeticError, RecursionError) as error:
        reason = str(error).split("\nSee ")[0][-200:] if isinstance(error, HydraException) else "it cannot be read"
        reason = reason.partition(" expecting {")[0].replace("<EOF>", "its end")
        if redacted(text) != text:
            reason = "it cannot be read"  # Hydra's own words quote it
        hint = ""
        if "=" not in text:
            hint = ' Write key=value. In a YAML list, quote an override that holds a comma: ["lr=1e-4,5e-4"].'
        raise OpError(f"The override {shown(text)} is not in Hydra's grammar: {reason}{hint}") from error


def _check_key(text: str, override: Override) -> None:
    for path in (override.key_or_group, override.package):
        if path is None:
            continue
        parts = re.split(r"[./]", path)
        if parts[0] == "hydra":
            raise OpError(
                f"The override {shown(text)} sets Hydra itself. An op may change the configuration of a run only."
            )
        section = parts[1:2] if parts[0] == "rfflow" else parts[:1]  # an app of one's own has ours in a section
        if section and section[0] in EXPERIMENT_KEYS:
            raise OpError(
                f"The override {shown(text)} sets {section[0]}, which all runs share. Not allowed in an op: "
                f"{', '.join(EXPERIMENT_KEYS)}."
            )
        _check_names(text, parts)
    if not override.key_or_group:
        raise OpError(f"The override {shown(text)} names no key. Write key=value, such as lr=5e-4.")


def _choices(text: str, override: Override, config_loader: Any) -> list[str]:
    """Return the override once for each value of its sweep, every value checked."""
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    is_group = "." not in override.key_or_group
    if not override.is_sweep_override():
        _check_value(text, override.value(), is_group)
        return [text]
    if override.value_type == ValueType.INTERVAL_SWEEP:
        raise OpError(
            f"The override {shown(text)} is an interval, which has no end of values. List them: lr=1e-4,5e-4."
        )
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP and config_loader is None:
        return [text]
    if getattr(override.value(), "shuffle", False):
        raise OpError(
            f"The override {shown(text)} shuffles: the clones' numbers would be left to chance. Leave shuffle out."
        )
    try:
        elements = list(itertools.islice(override.sweep_iterator(), MAX_CLONES + 1))
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_CLONES + 1))
    except (HydraException, ValueError, ArithmeticError) as error:
        raise OpError(f"The sweep {shown(text)} cannot be read: {error}") from error
    for element in elements:
        _check_value(text, element, is_group)
    if not values:
        raise OpError(f"The sweep {shown(text)} holds no value.")
    return [f"{override.get_key_element()}={value}" for value in values]


def _check_value(text: str, value: object, is_group: bool) -> None:
    for leaf in _strings(text, value):
        if "${" in leaf and not _REFERENCE.fullmatch(leaf):
            raise OpError(
                f"The override {shown(text)} holds {leaf!r}. Allowed in an op: plain values, and one reference "
                "alone, such as ${trainer.args.learning_rate}."
            )
        if is_group and (leaf.startswith("/") or ".." in leaf.split("/")):
            raise OpError(
                f"The override {shown(text)} points out of the config group. Name one of the group's configs."
            )


def _strings(text: str, value: object, depth: int = 0) -> Iterator[str]:
    """Yield every string in the value; keys of mappings are checked on the way."""
    from hydra.core.override_parser.types import QuotedString

    if depth > MAX_DEPTH:
        raise OpError(f"The override {shown(text)} is nested too deep. Allowed: up to {MAX_DEPTH} levels.")
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            name = str(getattr(key, "text", key))
            _check_names(text, re.split(r"[./]", name))
            yield name
            yield from _strings(text, item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(text, item, depth + 1)


def _check_names(text: str, names: Sequence[str]) -> None:
    for name in names:
        if name.strip() in CODE_KEYS:
            raise OpError(
                f"The override {shown(text)} sets {name}: an op may change values and choose among the "
                "config groups that exist, and may not name code."
            )
