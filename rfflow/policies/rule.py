"""One rule, read from a mapping and checked before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from rfflow.control.ops import VERBS, Clone, parse
from rfflow.control.selection import Everything, Numbers, Ranked, Selection, parse_selection
from rfflow.errors import ConfigError, OpError, nearest
from rfflow.policies.expressions import Expression, Template


@dataclass(frozen=True)
class Rule:
    """One rule, as it was read."""

    name: str
    do: str
    """The verb: stop, resume, clone, delete."""
    at_chunk: int | None = None
    """Ask once, at the end of this chunk."""
    every: int | None = None
    """Ask at the end of every so many chunks."""
    when: Expression | None = None
    """What must hold for a run."""
    select: Selection = field(default_factory=Everything)
    """Which of those for whom it holds: all, {best: 2, by: eval_loss} or {worst: 50%}."""
    overrides: tuple[Template, ...] = ()
    """A clone's, in Hydra's grammar, with expressions in ${...}."""
    warm_start: bool = False
    """Whether a clone starts from its parent's weights."""
    times: int | None = None
    """How often it may act on a run in all; None does not count."""


def read_rule(document: object, number: int) -> Rule:
    """Read and check one rule.

    Raises:
        ConfigError: naming the rule, with what is allowed.
    """
    allowed = [f.name for f in fields(Rule)]
    if not isinstance(document, Mapping):
        raise ConfigError(f"Rule {number} is {document!r}. Allowed: a mapping such as {{name: weak, do: stop}}.")
    name = str(document.get("name") or f"rule{number}")
    where = f"Rule {name!r}"
    if "/" in name or name != name.strip():
        raise ConfigError(f"{where}: a name has no slash and no blanks around it.")
    for key in document:
        if key not in allowed:
            raise ConfigError(f"{where} has no key {key!r}.{nearest(str(key), allowed)} Allowed: {', '.join(allowed)}.")
    verb = document.get("do")
    if verb not in VERBS:
        hint = nearest(verb, VERBS) if isinstance(verb, str) else ""
        raise ConfigError(f"{where}: do is {verb!r}.{hint} Allowed: {', '.join(VERBS)}.")
    counts = {key: _count(document.get(key), f"{where}: {key}") for key in ("at_chunk", "every", "times")}
    if counts["at_chunk"] and counts["every"]:
        raise ConfigError(f"{where} has both at_chunk and every. Give one.")
    when = document.get("when")
    if when is not None and not isinstance(when, str):
        raise ConfigError(f'{where}: when is {when!r}. Allowed: an expression in quotes, such as "loss > 3".')
    rule = Rule(
        name=name,
        do=str(verb),
        when=None if when is None else Expression(when, f"{where}: when"),
        select=_read_select(document.get("select", "all"), where),
        overrides=_read_overrides(document, where),
        warm_start=document.get("warm_start", False),
        **counts,
    )
    _check_whole(rule, where)
    return rule


def _check_whole(rule: Rule, where: str) -> None:
    if not isinstance(rule.warm_start, bool):
        raise ConfigError(f"{where}: warm_start is {rule.warm_start!r}. Allowed: true, false.")
    if rule.at_chunk is None and rule.every is None and rule.when is None:
        raise ConfigError(f"{where} says neither at_chunk, every nor when, so it would act at once on every run.")
    if isinstance(rule.select, Ranked) and rule.at_chunk is None and rule.every is None:
        raise ConfigError(f"{where} selects the {rule.select.end}: say at_chunk or every, so that runs are comparable.")
    if rule.do == Clone.verb and rule.every is not None and rule.when is None and rule.times is None:
        raise ConfigError(f'{where} would clone for ever. Limit it: times: 4, or when: "age < chunks".')
    # Numbers stand in for the expressions: the keys and the grammar are known now, the values later.
    document: dict[str, Any] = {"op": rule.do, "run": 0}
    if rule.do == Clone.verb:
        document |= {"overrides": [template.fill(lambda name: 1) for template in rule.overrides]}
        document["warm_start"] = rule.warm_start
    elif rule.overrides or rule.warm_start:
        raise ConfigError(f"{where}: overrides and warm_start belong to do: clone; this one says do: {rule.do}.")
    try:
        parse(document)
    except OpError as error:
        raise ConfigError(f"{where}: {error}") from error


def _read_select(value: object, where: str) -> Selection:
    try:
        selection = parse_selection(value)
    except OpError as error:
        raise ConfigError(f"{where}: select: {error}") from error
    if isinstance(selection, Numbers):
        raise ConfigError(f"{where}: select is {value!r}. Allowed: all, {{best: 2, by: eval_loss}} or {{worst: 50%}}.")
    return selection


def _read_overrides(document: Mapping[str, Any], where: str) -> tuple[Template, ...]:
    overrides = document.get("overrides") or []
    if not isinstance(overrides, (list, tuple)) or not all(isinstance(text, str) for text in overrides):
        raise ConfigError(f'{where}: overrides is {overrides!r}. Allowed: a list of texts, such as ["lr=5e-4"].')
    return tuple(Template(text, f"{where}: overrides") for text in overrides)


def _count(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where} is {value!r}. Allowed: a whole number from 1 up.")
    return value


def read_file(file: str) -> list[Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
        document = yaml.safe_load(text.replace("\\${", "${"))  # as it is written for Hydra
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"policy.file is {file!r}, which cannot be read: {error}") from error
    if isinstance(document, Mapping):
        document = document.get("policy", document)
        document = document.get("rules") if isinstance(document, Mapping) else None
    if not isinstance(document, list):
        raise ConfigError(f"policy.file is {file!r}, which holds no list of rules (rules: [...]).")
    return document
