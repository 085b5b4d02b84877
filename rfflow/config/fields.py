"""Sections and values of a configuration, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from rfflow.config.references import resolved
from rfflow.config.spec import (
    Node,
)
from rfflow.errors import ConfigError, nearest


def settings_of(section: Any, name: str, allowed: Sequence[str]) -> dict[str, Any]:
    if section and not isinstance(section, Mapping):
        raise ConfigError(
            f"{name} is {section!r}, and holds settings of its own: {', '.join(f'{name}.{key}=' for key in allowed)}."
        )
    section = dict(section or {})
    for key in section:
        if key not in allowed:
            raise ConfigError(f"{name}.{key} is not a setting.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")
    return section


def plain(cfg: DictConfig) -> dict[str, Any]:
    container = resolved(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def section_of(config: Node, name: str) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"The configuration has no section {name!r} (value seen: {section!r}). "
            f"Choose a recipe (+recipe=sft) or a config of the group ({name}=...)."
        )
    return dict(section)


def without_none(section: Node) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def whole_number(value: Any, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}. Allowed: a whole number from {least} up.")
    return value


def boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}. Allowed: true, false.")
    return value
