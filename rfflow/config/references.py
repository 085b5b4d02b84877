"""What a configuration's ``${...}`` stand for, or a sentence that says why one of them stands for nothing.

What people typed is kept as they typed it: a reference is resolved where a value is needed, never where overrides are
shown, compared or saved. ``peft.lora_alpha=${peft.r}`` means another number in a clone of another rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from rfflow.errors import ConfigError, nearest

_VARIABLE = re.compile(r"Environment variable '(.+?)' not found")
_KEY = re.compile(r"Interpolation key '(.+?)' not found")


def as_typed(overrides: Any) -> list[str]:
    """Return a list of overrides without resolving what they refer to, as going through it would."""
    texts: Any = OmegaConf.to_container(overrides, resolve=False) if OmegaConf.is_config(overrides) else overrides
    return [str(text) for text in texts]


def resolved(cfg: Container) -> Any:
    """Return a configuration as plain values.

    Raises:
        ConfigError: naming what is missing, and the override or the key that asks for it.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise unresolvable(error, cfg) from None  # the sentence has it all


def value_at(cfg: DictConfig, key: str) -> Any:
    """Return one value of a configuration; otherwise as :func:`resolved`."""
    try:
        return OmegaConf.select(cfg, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise unresolvable(error, cfg) from None  # the sentence has it all


def unresolvable(error: OmegaConfBaseException, cfg: Container) -> ConfigError:
    """Say in a sentence what a reference asks for in vain, and who does."""
    reason = str(error).partition("\n")[0].strip()
    if (found := _VARIABLE.search(reason)) is not None:
        name = found[1]
        asking = re.compile(rf"oc\.env:\s*{re.escape(name)}\b")
        return ConfigError(
            f"{_who(cfg, error.full_key, asking)}: the environment variable "
            f"{name} is not set. Set it, or write what stands for it where it is not: ${{oc.env:{name},value}}."
        )
    if isinstance(error, InterpolationKeyError) and (found := _KEY.search(reason)) is not None:
        key = found[1]
        near = nearest(key, [name for name, _ in _leaves(_plain(cfg))])
        return ConfigError(
            f"{_who(cfg, error.full_key, re.compile(re.escape(key)))}: there is no {key} in the configuration to take "
            f"the value from.{near}"
        )
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key} is not given, and has no value of its own. Type {error.full_key}=...")
    return ConfigError(f"The configuration is not complete: {_who(cfg, error.full_key)}: {reason}")


def _who(cfg: Container, key: str | None, asking: re.Pattern[str] | None = None) -> str:
    """Return the override that asks for something, or the key that does where it stands in a file."""
    if asking is not None:
        for override in _overrides(cfg):
            if "${" in override and asking.search(override):
                return override
        leaves = list(_leaves(_plain(cfg)))
        for name, value in [*(leaf for leaf in leaves if leaf[0] == key), *leaves]:
            if isinstance(value, str) and "${" in value and asking.search(value):
                return f"{name} is {value} in the configuration"
    return key or "a value"


def _overrides(cfg: Container) -> Sequence[str]:
    """Return what was typed: a job's function gets its configuration without Hydra's own part, where that stands."""
    root = cfg._get_root()
    hydra = root.get("hydra") if isinstance(root, DictConfig) and "hydra" in root else None
    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
    return [] if hydra is None else [*as_typed(hydra.overrides.hydra), *as_typed(hydra.overrides.task)]


def _plain(cfg: Container) -> Any:
    return OmegaConf.to_container(cfg._get_root(), resolve=False)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{name}[{index}]")
    else:
        yield name, node
