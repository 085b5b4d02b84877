"""Read and check the section ``dataset``: one data set or several, and what to evaluate on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rfflow.config.spec import DatasetSpec, Node, Paths
from rfflow.errors import ConfigError, nearest

_PART = ("path", "name", "config", "split", "columns", "sample_by", "formatting_func", "fraction")
_TOP = tuple(f.name for f in fields(DatasetSpec) if f.name != "fraction")
STOPPING = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


def read_dataset(section: Node, where: str = "dataset") -> DatasetSpec:
    """Read and check the section.

    Args:
        section: its settings.
        where: its name, for messages.

    Raises:
        ConfigError: naming the setting that cannot be.
    """
    allowed = _TOP if where == "dataset" else _PART
    for key in section:
        if key not in allowed:
            raise ConfigError(f"{where}.{key} is not a setting.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")
    settings = {key: value for key, value in section.items() if value is not None}
    for key in ("name", "config", "split"):
        if key in settings:
            settings[key] = _text(settings[key], f"{where}.{key}")
    if "path" in settings:
        settings["path"] = _paths(settings["path"], f"{where}.path")
    if "eval_path" in settings:
        settings["eval_path"] = _eval_paths(settings["eval_path"])
    if "eval_split" in settings:
        settings["eval_split"] = _eval_splits(settings["eval_split"])
    if "columns" in settings:
        settings["columns"] = _columns(settings["columns"], f"{where}.columns")
    if settings.get("sample_by", "line") not in ("line", "paragraph", "document"):
        raise ConfigError(f"{where}.sample_by is {settings['sample_by']!r}. Allowed: line, paragraph, document.")
    settings["datasets"] = _parts(settings.get("datasets", ()), where)
    if "probabilities" in settings:
        settings["probabilities"] = _probabilities(settings["probabilities"])
    spec = DatasetSpec(**settings)
    given = [key for key in ("path", "name", "datasets") if getattr(spec, key)]
    if len(given) != 1:
        several = ", or dataset.datasets (several of them)" if where == "dataset" else ""
        raise ConfigError(
            f"Give either {where}.path (a JSONL, JSON, CSV or Parquet file) or {where}.name (a hub data set){several}. "
            f"Seen: path={section.get('path')!r}, name={section.get('name')!r}."
        )
    if where == "dataset":
        _check_mixture(spec)
    return spec


def _columns(value: Any, where: str) -> Mapping[str, str]:
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return {each: each for each in value}  # as TRL's DatasetConfig has it
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}. Allowed: {{column in the data: column that the trainer reads}}.")
    return value


def _text(value: Any, where: str, more: str = "") -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a configuration called 2024
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}. Allowed: one text{more}, or null where there is none.")
    return value


def _paths(value: Any, where: str, more: str = " or a list of them") -> Paths:
    if not isinstance(value, list | tuple):
        return _text(value, where, more)
    if not value:
        raise ConfigError(f"{where} is an empty list. Give the files to read.")
    return tuple(_text(each, f"{where}[{index}]") for index, each in enumerate(value))


def _eval_paths(value: Any) -> Paths | Mapping[str, Paths]:
    where = "dataset.eval_path"
    if isinstance(value, Mapping):
        return {name: _filled(_paths(path, f"{where}.{name}"), f"{where}.{name}") for name, path in _sets(value, where)}
    return _filled(_paths(value, where, ", a list of them, or {name: path} for several sets"), where)


def _eval_splits(value: Any) -> str | Mapping[str, str]:
    where = "dataset.eval_split"
    if isinstance(value, list | tuple):
        value = {str(split): split for split in value}
    if isinstance(value, Mapping):
        return {name: _text(split, f"{where}.{name}") for name, split in _sets(value, where)}
    return _text(value, where, ", a list of them, or {name: split}")


def _sets(value: Mapping[Any, Any], where: str) -> list[tuple[str, Any]]:
    """Return the evaluation sets; one that was set to null, as an override may do, is none."""
    found = [(str(name), each) for name, each in value.items() if each is not None]
    if not found:
        raise ConfigError(f"{where} names no evaluation set. Say {where}=null to evaluate on none.")
    for name, _ in found:
        if not re.fullmatch(r"\w+", name):
            raise ConfigError(
                f"{where} has a set called {name!r}. Its metrics are called eval_<name>_loss, so a name has letters, "
                "digits and _ only."
            )
    return found


def _filled(value: Paths, where: str) -> Paths:
    for path in (value,) if isinstance(value, str) else value:
        if not path.strip():
            raise ConfigError(f"{where} is {path!r}. Allowed: a path, or null where there is none.")
    return value


def _parts(value: Any, where: str) -> tuple[DatasetSpec, ...]:
    """Read ``datasets``: a list, or by name, so that one of them can be overridden."""
    named: Sequence[tuple[str, Any]]
    if isinstance(value, Mapping):
        named = [(f"{where}.datasets.{name}", part) for name, part in value.items() if part is not None]
    elif isinstance(value, list | tuple):
        named = [(f"{where}.datasets[{index}]", part) for index, part in enumerate(value)]
    else:
        raise ConfigError(f"{where}.datasets is {value!r}. Allowed: a list of data sets, each {{path: ...}} or so.")
    parts = []
    for place, part in named:
        if not isinstance(part, Mapping | str):
            raise ConfigError(f"{place} is {part!r}. Allowed: a path, or a data set such as {{path: a.jsonl}}.")
        parts.append(read_dataset({"path": part} if isinstance(part, str) else dict(part), place))
    return tuple(parts)


def _probabilities(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(_is_number(each) and each > 0 for each in value):
        raise ConfigError(
            f"dataset.probabilities is {value!r}. Allowed: a list of numbers above 0, one for each data set, such as "
            "[0.7, 0.3]."
        )
    total = math.fsum(value)
    if abs(total - 1) > 1e-8:
        scaled = ", ".join(f"{each / total:.4g}" for each in value)
        raise ConfigError(
            f"dataset.probabilities is {list(value)}, which add up to {total:g}. They have to add up to 1, as about "
            f"[{scaled}] do."
        )
    return tuple(map(float, value))


def _check_mixture(spec: DatasetSpec) -> None:
    interleaved = [key for key in ("probabilities", "stopping_strategy") if getattr(spec, key) is not None]
    count = len(spec.datasets) or (1 if not isinstance(spec.path, tuple) else len(spec.path))
    if interleaved and count < 2:
        raise ConfigError(
            f"dataset.{interleaved[0]} mixes several data sets, and there is one. Give dataset.path as a list, or "
            "dataset.datasets."
        )
    if spec.probabilities is not None and len(spec.probabilities) != count:
        raise ConfigError(f"dataset.probabilities has {len(spec.probabilities)} numbers for {count} data sets.")
    if spec.stopping_strategy is not None and spec.stopping_strategy not in STOPPING:
        hint = nearest(str(spec.stopping_strategy), STOPPING)
        raise ConfigError(
            f"dataset.stopping_strategy is {spec.stopping_strategy!r}.{hint} Allowed: {', '.join(STOPPING)}."
        )
    if spec.seed is not None:
        if isinstance(spec.seed, bool) or not isinstance(spec.seed, int) or spec.seed < 0:
            raise ConfigError(f"dataset.seed is {spec.seed!r}. Allowed: a whole number from 0 up.")
        if spec.probabilities is None:
            raise ConfigError(
                f"dataset.seed is {spec.seed}, and there are no dataset.probabilities to draw by. What eval_size holds "
                "out is drawn with the experiment's seed."
            )
    fractions = [part.fraction for part in spec.datasets]
    if all(fraction is None for fraction in fractions):
        return
    if interleaved:
        raise ConfigError(f"dataset.{interleaved[0]} and a fraction are two ways to mix. Give one of them.")
    for index, fraction in enumerate(fractions):
        if fraction is None or not _is_number(fraction) or fraction < 0:
            raise ConfigError(
                f"The fraction of dataset.datasets[{index}] is {fraction!r}. Allowed: a number from 0 up for each of "
                "them, or for none."
            )
    if not any(fractions):
        raise ConfigError("The fractions of dataset.datasets are all 0. Give one of them more.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
