"""What can be asked of runs while an experiment goes: stop, resume, clone, delete.

An op is a small mapping, one YAML document::

    op: clone
    run: 0
    overrides: ["lr=5e-4", "peft.r=32"]
    warm_start: true

:func:`parse` turns it into a frozen dataclass or says what is wrong; nothing here looks at runs or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rfflow.control.overrides import check
from rfflow.control.selection import Selection, parse_selection, shown
from rfflow.errors import OpError, nearest


@dataclass(frozen=True)
class Stop:
    """The runs leave the device at the end of their chunk; they can be resumed."""

    verb: ClassVar[str] = "stop"
    acts_on: ClassVar[tuple[str, ...]] = ("queued", "running")

    target: Selection


@dataclass(frozen=True)
class Resume:
    """Stopped runs go on from their next chunk."""

    verb: ClassVar[str] = "resume"
    acts_on: ClassVar[tuple[str, ...]] = ("stopped",)

    target: Selection


@dataclass(frozen=True)
class Clone:
    """New runs made from the configuration of others."""

    verb: ClassVar[str] = "clone"
    acts_on: ClassVar[tuple[str, ...]] = ("queued", "running", "stopped", "completed", "failed")

    target: Selection
    overrides: tuple[str, ...] = ()
    """On top of the parent's, in Hydra's grammar; a sweep makes several clones of each parent."""
    warm_start: bool = False
    """Start from the parent's weights."""


@dataclass(frozen=True)
class Delete:
    """The runs' curves go; their checkpoints stay; no further op is taken on them."""

    verb: ClassVar[str] = "delete"
    acts_on: ClassVar[tuple[str, ...]] = ("queued", "running", "stopped", "completed", "failed")

    target: Selection


Op = Stop | Resume | Clone | Delete

VERBS: dict[str, type[Op]] = {op.verb: op for op in (Stop, Resume, Clone, Delete)}


def parse(document: object) -> Op:
    """Read one op document.

    Raises:
        OpError: with what was wrong, the value seen and what is allowed.
    """
    if not isinstance(document, Mapping):
        raise OpError(f"An op is a mapping such as {{op: stop, run: 3}}. Seen: {shown(document)}.")
    if "op" not in document:
        raise OpError(f"The op has no key 'op'. Keys seen: {_words(document)}. Allowed: op: {', '.join(VERBS)}.")
    verb = document["op"]
    if not isinstance(verb, str) or verb not in VERBS:
        hint = nearest(verb, VERBS) if isinstance(verb, str) else ""
        raise OpError(f"op is {shown(verb)}.{hint} Allowed: {', '.join(VERBS)}.")
    allowed = ("op", "run", "overrides", "warm_start") if verb == Clone.verb else ("op", "run")
    for key in document:
        if key not in allowed:
            raise OpError(_unknown_key(verb, key, allowed))
    if "run" not in document:
        raise OpError(
            f"{verb} needs run: a number, a list of numbers, all, {{best: 2, by: eval_loss}} or {{worst: 50%}}."
        )
    target = parse_selection(document["run"])
    if verb == Clone.verb:
        return _parse_clone(target, document.get("overrides", []), document.get("warm_start", False))
    return VERBS[verb](target)


def to_document(op: Op) -> dict[str, Any]:
    """Return the mapping that :func:`parse` reads as this op."""
    document: dict[str, Any] = {"op": op.verb, "run": op.target.to_document()}
    if isinstance(op, Clone):
        document["overrides"] = list(op.overrides)
        document["warm_start"] = op.warm_start
    return document


def _parse_clone(target: Selection, overrides: object, warm_start: object) -> Clone:
    if not isinstance(warm_start, bool):
        raise OpError(f"warm_start is {shown(warm_start)}. Allowed: true, false.")
    if not isinstance(overrides, list):
        raise OpError(f'overrides is {shown(overrides)}. Allowed: a list, such as ["lr=5e-4", "peft.r=32"].')
    for override in overrides:
        if isinstance(override, Mapping):
            raise OpError(f"The override {shown(override)} is a mapping. Write key=value, such as lr=5e-4.")
        if not isinstance(override, str):
            raise OpError(
                f"The override {shown(override)} is not text. Write key=value, such as lr=5e-4. "
                'In a YAML list, quote an override that holds a comma: ["lr=1e-4,5e-4"].'
            )
    if not overrides and not warm_start:
        raise OpError(
            f"overrides is {shown(overrides)}: the clone would repeat its parent. "
            "Give overrides, or warm_start: true to train on from the parent's weights."
        )
    check(overrides)
    return Clone(target, tuple(overrides), warm_start)


def _unknown_key(verb: str, key: object, allowed: tuple[str, ...]) -> str:
    if key in ("overrides", "warm_start"):
        return f"{key} belongs to clone; {verb} takes no such key. Allowed: {', '.join(allowed)}."
    hint = nearest(key, allowed) if isinstance(key, str) else ""
    return f"{verb} has no key {shown(key)}.{hint} Allowed: {', '.join(allowed)}."


def _words(document: Mapping[Any, Any]) -> str:
    return shown(list(document)) if document else "none"
