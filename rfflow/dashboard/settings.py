"""What an experiment was configured with that the page speaks of: where ops go, what ranks the runs, who issues ops."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rfflow.config.spec import Objective
from rfflow.dashboard.changing import text_of

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Settings:
    """The part of a configuration that all runs of an experiment share."""

    control: Path
    """The watched directory."""
    objective: Objective = field(default_factory=Objective)
    policy: str | None = None
    """The last word of its ``_target_``."""
    idle_timeout: float | None = 600.0
    takes_ops: bool = True


def read_settings(root: Path, inside: Path | None = None) -> Settings:
    """Read what Hydra has written of an experiment; what it has not is as by default.

    Args:
        root: its directory.
        inside: outside of which nothing is read (:func:`rfflow.dashboard.changing.open_inside`), ``control`` included.
    """
    config: Mapping[str, Any] = next(_configs(root, inside), {})
    section = config.get("rfflow")
    if isinstance(section, Mapping) and "control" not in config:  # an app of somebody's own has ours in a section
        config = section
    control, policy, objective = (_mapping(config, key) for key in ("control", "policy", "objective"))
    where = control.get("dir")
    target = str(policy.get("_target_") or "")
    return Settings(
        control=_control(root, config, where, inside),
        objective=Objective(
            str(objective.get("metric", "eval_loss")),
            "maximize" if objective.get("direction") == "maximize" else "minimize",
        ),
        policy=target.rpartition(".")[2] or None,
        idle_timeout=control.get("idle_timeout", 600.0),
        takes_ops=control.get("enabled", True) is not False,
    )


def files_of_settings(root: Path) -> tuple[Path, ...]:
    """Return where Hydra writes what an experiment is configured with: the first of these that there is."""
    return root / "multirun.yaml", root / ".hydra" / "config.yaml", root / "runs" / "0" / ".hydra" / "config.yaml"


def _control(root: Path, config: Mapping[str, Any], where: Any, inside: Path | None) -> Path:
    if not isinstance(where, str) or "$" in where:
        return root / "control"
    folder = _cwd(root, config) / where
    if inside is not None and not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(inside)):
        return root / "control"
    return folder


def _configs(root: Path, inside: Path | None) -> Iterator[dict[str, Any]]:
    for path in files_of_settings(root):
        try:
            document = yaml.load(text_of(path, inside), _Loader)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(document, dict):
            yield document


def _cwd(root: Path, config: Mapping[str, Any]) -> Path:
    """Return what paths in a configuration are relative to, as far as it says so."""
    runtime = _mapping(_mapping(config, "hydra"), "runtime")
    return Path(runtime.get("cwd") or root)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
