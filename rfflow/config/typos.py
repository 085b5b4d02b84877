"""Overrides that do not compose, answered by what was meant: groups, options and keys that are not there.

Hydra says what it could not do and how to force it; a key that was forced would be read by nobody.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rfflow.errors import ConfigError

_USUAL = {"search": "tpe"}
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz", ".zst")


def explained(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> ConfigError | None:
    """Return what is wrong with overrides that Hydra refused; ``None`` where only Hydra knows.

    Args:
        loader: the one that refused them.
        config_name: what they change.
        overrides: all of them.
    """
    try:
        return _Reader(loader, config_name, overrides).explained()
    except HydraException:
        return None


def swept(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> ConfigError | None:
    """Return what to say of overrides that list several values where the command is no sweep."""
    try:
        return _Reader(loader, config_name, overrides).swept()
    except HydraException:
        return None


class _Reader:
    """Reads overrides one by one against the configuration that those before it have chosen."""

    def __init__(self, loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]):
        self._loader = loader
        self._config_name = config_name
        self._overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        self._plain = self._load([])
        self._groups = [group for group in loader.list_groups("") if group != "hydra"]
        self._choices = self._plain.hydra.runtime.choices

    def swept(self) -> ConfigError | None:
        """Answer the first override that is swept."""
        for override in self._overrides:
            if override.is_sweep_override() and not override.key_or_group.startswith("hydra."):
                line = override.input_line or ""
                one = next(_written(override)) if override.is_choice_sweep() else f"{line.partition('=')[0]}=..."
                return ConfigError(f"{line} is several values. To train them all, add --multirun; for one, type {one}")
        return None

    def explained(self) -> ConfigError | None:
        chosen: list[str] = []
        for override in self._overrides:
            if self._options(override.key_or_group) and not isinstance(override.value(), dict):
                if said := self._of_group(override) or self._twice(override, chosen):
                    return ConfigError(said)
                chosen += [next(_written(override))]
        config = self._load(chosen)
        for override in self._overrides:
            if self._options(override.key_or_group) or override.is_add() or override.is_force_add():
                continue
            if said := self._of_key(config, override):
                return ConfigError(said)
        return None

    def _load(self, overrides: list[str]) -> DictConfig:
        return self._loader.load_configuration(self._config_name, overrides, RunMode.RUN)

    def _options(self, group: str) -> list[str]:
        return [] if "." in group else self._loader.get_group_options(group)

    def _of_group(self, override: Override) -> str | None:
        group, options = override.key_or_group, self._options(override.key_or_group)
        if override.is_delete():
            return None
        has_one = group in self._choices
        plus = "" if has_one else "+"
        for option in _values(override):
            if option not in options:
                return _no_option(group, plus, "null" if option is None else str(option), options)
        if not override.is_add() and not override.is_force_add() and not has_one:
            return f"{override.input_line}: nothing is chosen of {group} yet. Type +{override.input_line}"
        if (override.is_add() or override.is_force_add()) and has_one and override.package is None:
            line = (override.input_line or "").lstrip("+")
            is_chosen = f"{group}={self._choices[group]} is chosen already"
            return f"{override.input_line}: {is_chosen}. Type {line}, without the plus"
        return None

    def _twice(self, override: Override, chosen: Sequence[str]) -> str | None:
        """Refuse a second ``+recipe=``: both were to set what they set, and neither overrides the other."""
        before = [line for line in chosen if line.startswith("+") and line.partition("=")[0] == _key(override)]
        if not before:
            return None
        both = f"{before[0]},{_shown(override).partition('=')[2]}"
        return f"{before[0]} and {override.input_line}: choose one of them, or train both with --multirun {both}"

    def _of_key(self, config: DictConfig, override: Override) -> str | None:
        path = override.key_or_group.split(".")
        node: object = config
        for depth, part in enumerate(path):
            if not isinstance(node, DictConfig) or (depth and not OmegaConf.is_struct(node)):
                return None  # what is in it is checked where the allowed names are known
            if part not in node:
                return self._not_there(override, path, depth, node)
            node = node._get_node(part)
        return None

    def _not_there(self, override: Override, path: list[str], depth: int, node: DictConfig) -> str:
        where = ".".join(path[: depth + 1])
        names = [str(name) for name in node if depth or name != "hydra"]
        if not depth:
            names += [*(group for group in self._groups if group not in names), "resume"]
        elif choosing := list(self._choosing(path)):
            usual = path[1] if path[1] in choosing else _USUAL.get(path[0], choosing[0])
            others = ", ".join(option for option in choosing if option != usual)
            return (
                f"{where}: {path[0]}={self._choices[path[0]]} is chosen, which has no such setting. Type "
                f"{path[0]}={usual} {_shown(override)}{f' (or {others})' if others else ''}"
            )
        said = f"There is no {where}."
        own = f" A key of your own takes a plus: +{_shown(override)}" if path[0] in ("callbacks", "loggers") else ""
        value = _shown(override).partition("=")[2]
        for near in difflib.get_close_matches(path[depth], names, 1, 0.6):
            option = value
            if near in self._groups and len(path) == 1:
                option = next(iter(difflib.get_close_matches(value, self._options(near), 1, 0.6)), value)
            plus = "+" if near in self._groups and near not in self._choices else ""
            mark = "~" if override.is_delete() else plus
            meant = f"{mark}{'.'.join([*path[:depth], near, *path[depth + 1 :]])}"
            return f"{said} Did you mean {meant}{f'={option}' if option else ''}?{own}"
        there = ", ".join(sorted(names)) or "nothing"
        return f"{said} {'.'.join(path[:depth]) or 'The configuration'} has {there}.{own}"

    def _choosing(self, path: list[str]) -> Iterator[str]:
        """Give the options of the group in which a key lies that have it."""
        group, rest = path[:2]
        if group not in self._choices:
            return
        for option in self._options(group):
            try:
                section = self._load([f"{group}={option}"]).get(group)
            except HydraException:
                continue
            if isinstance(section, DictConfig) and rest in section:
                yield option


def _no_option(group: str, plus: str, option: str, options: Sequence[str]) -> str:
    said = f"There is no {group} {option!r}."
    if near := difflib.get_close_matches(option, options, 1, 0.6):
        return f"{said} Did you mean {plus}{group}={near[0]}? There are: {', '.join(options)}."
    if group == "dataset" and "local" in options and (Path(option).exists() or Path(option).suffix in _FILES):
        return f"{said} Rows of your own: dataset=local dataset.path={shlex.quote(option)}"
    if group in ("model", "dataset") and "hub" in options and "/" in option:
        return f"{said} From the Hugging Face hub, or a folder: {group}=hub {group}.name={option}"
    return f"{said} There are: {', '.join(options)}. Others of your own: --config-dir FOLDER"


def _values(override: Override) -> Iterable[object]:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [each for each in value.list if not isinstance(each, list)]
    return value if isinstance(value, list) else [value]


def _written(override: Override) -> Iterator[str]:
    """Give an override as often as it has values, one each."""
    line = override.input_line or ""
    for value in _values(override):
        yield line if not override.is_sweep_override() else f"{line.partition('=')[0]}={value}"


def _key(override: Override) -> str:
    return (override.input_line or "").partition("=")[0]


def _shown(override: Override) -> str:
    return (override.input_line or "").lstrip("+~")
