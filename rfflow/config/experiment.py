"""The only reader of Hydra's ``DictConfig``: checks it, and turns it into the dataclasses of :mod:`rfflow.config.spec`.

Swept, cloned and sampled configurations all pass here, so a mistake is reported the same way wherever it was made. The
standard library, Hydra and OmegaConf only: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from rfflow.config.fields import boolean, plain, settings_of, whole_number
from rfflow.config.quotas import read_quotas
from rfflow.config.spec import (
    FUSIONS,
    KEEP,
    CheckpointSpec,
    ControlSpec,
    ExperimentSpec,
    MemorySpec,
    Node,
    Objective,
)
from rfflow.errors import ConfigError, nearest


def check_lr(cfg: DictConfig, lr: Any) -> None:
    """Name ``lr``, which people have typed, and not the argument that takes it from there."""
    args = OmegaConf.select(cfg, "trainer.args", default=None)
    given: Any = OmegaConf.to_container(args, resolve=False) if isinstance(args, DictConfig) else {}
    is_number = isinstance(lr, int | float) and not isinstance(lr, bool)
    if given.get("learning_rate") == "${lr}" and not is_number:
        raise ConfigError(f"lr is {lr!r}. Allowed: a number, such as 2e-4.")


def read_experiment(cfg: DictConfig) -> ExperimentSpec:
    """Read and check what the runs of an experiment share."""
    config = plain(cfg)
    allowed = ("accelerator", "devices", "device", "cluster", "capture_output", "memory", "on_nan", "fusion")
    engine = settings_of(config.get("engine"), "engine", allowed)
    memory = settings_of(engine.pop("memory", None), "engine.memory", [f.name for f in fields(MemorySpec)])
    if engine.get("on_nan", "fail") not in ("fail", "stop", "ignore"):
        raise ConfigError(f"engine.on_nan is {engine['on_nan']!r}. Allowed: fail, stop, ignore.")
    if "fusion" in engine:
        engine["fusion"] = _read_fusion(engine["fusion"])
    engine["devices"] = _read_devices(engine.get("devices", "auto"), engine.pop("device", None))
    engine["cluster"] = _read_cluster(engine.get("cluster"))
    boolean(engine.get("capture_output", True), "engine.capture_output")
    control = settings_of(config.get("control"), "control", [f.name for f in fields(ControlSpec)])
    return ExperimentSpec(
        name=_read_name(config.get("name", "experiment")),
        objective=read_objective(config.get("objective")),
        searched=read_objectives(config.get("search")),
        seed=whole_number(config.get("seed") or 0, "seed", least=0),
        loggers={key: node for key, node in (config.get("loggers") or {}).items() if node},
        callbacks={key: node for key, node in (config.get("callbacks") or {}).items() if node},
        memory=MemorySpec(**memory),
        control=_check_control(ControlSpec(**control)),
        checkpoint=_read_checkpoint(config.get("checkpoint")),
        policy=_read_policy(config.get("policy")),
        quotas=read_quotas(config),
        **engine,
    )


def _read_fusion(fusion: Any) -> str:
    fusion = "off" if fusion is False else fusion  # as YAML reads the word
    if fusion not in FUSIONS:
        raise ConfigError(
            f"engine.fusion is {fusion!r}.{nearest(str(fusion), FUSIONS)} Allowed: {', '.join(FUSIONS)}: whether LoRA "
            "runs of one base go through it in one pass, and how."
        )
    return str(fusion)


def _read_cluster(cluster: Any) -> str | None:
    if cluster is None or cluster in ("auto", "local"):
        return cluster
    host, _, port = str(cluster).rpartition(":")
    if not isinstance(cluster, str) or not host or "/" in host or not port.isdigit():
        raise ConfigError(
            f"engine.cluster is {cluster!r}. Allowed: null (the devices of this machine), auto (the Ray cluster that "
            "this machine is in), host:port of its head, or local (a cluster of this machine alone, for a try)."
        )
    return cluster


def _read_devices(devices: Any, device: Any) -> Literal["auto"] | int | tuple[int, ...]:
    """Read ``engine.devices``; ``engine.device`` names one, and is what it was called when there was only one."""
    if device is not None:
        if devices != "auto":
            raise ConfigError(f"engine.device is {device!r} and engine.devices is {devices!r}. Give one of them.")
        return (whole_number(device, "engine.device", least=0),)
    if isinstance(devices, list | tuple):
        places = tuple(whole_number(place, "engine.devices", least=0) for place in devices)
        if not places or len(set(places)) < len(places):
            raise ConfigError(f"engine.devices is {list(devices)}. Allowed: each device once, such as [0,2].")
        return places
    if devices == "auto":
        return "auto"
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(
            f"engine.devices is {devices!r}. Allowed: auto (all that are visible), how many, or which, such as [0,2]."
        )
    return devices


def _read_name(name: Any) -> str:
    if name is None or not str(name).strip():
        raise ConfigError(f"name is {name!r}. Give the experiment a name: it is its folder under outputs/.")
    return str(name)


def _check_control(control: ControlSpec) -> ControlSpec:
    timeout = control.idle_timeout
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise ConfigError(f"control.idle_timeout is {timeout!r}. Allowed: seconds from 0 up, or null to wait for ever.")
    boolean(control.enabled, "control.enabled")
    boolean(control.polling, "control.polling")
    return control


def _read_policy(section: Any) -> Node | None:
    if not section:
        return None
    if not isinstance(section, Mapping) or not section.get("_target_"):
        raise ConfigError(
            f"policy is {section!r}, which has no _target_. Choose one with policy=halving, or none with policy=none."
        )
    return dict(section)


def _read_checkpoint(section: Any) -> CheckpointSpec:
    settings = settings_of(section, "checkpoint", [f.name for f in fields(CheckpointSpec)])
    keep = settings.pop("keep", CheckpointSpec.keep)
    keep = (keep,) if isinstance(keep, str) else tuple(keep or ())
    for word in keep:
        if word not in KEEP:
            raise ConfigError(
                f"checkpoint.keep has {word!r}.{nearest(str(word), KEEP)} Allowed: any of {', '.join(KEEP)}."
            )
    if settings.get("every", 1) is not None:
        whole_number(settings.get("every", 1), "checkpoint.every")
    grace = settings.get("grace", CheckpointSpec.grace)
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or grace < 0:
        raise ConfigError(f"checkpoint.grace is {grace!r}. Allowed: seconds from 0 up.")
    return CheckpointSpec(keep=keep, **settings)


def read_objective(section: Any, name: str = "objective") -> Objective:
    """Read and check a metric and its direction.

    Args:
        section: both, or neither for the defaults.
        name: where they stand, for messages.
    """
    if section and not isinstance(section, Mapping):
        raise ConfigError(f"{name} is {section!r}. Allowed: {{metric: eval_loss, direction: minimize}}.")
    objective = Objective(**settings_of(section, name, ("metric", "direction")))
    if objective.direction not in ("minimize", "maximize"):
        raise ConfigError(f"{name}.direction is {objective.direction!r}. Allowed: minimize, maximize.")
    return objective


def read_objectives(section: Any) -> tuple[Objective, ...]:
    """Read and check what a search weighs against each other: the ``objectives`` of the section ``search``."""
    nodes = section.get("objectives") if isinstance(section, Mapping) else None
    if nodes and not isinstance(nodes, list | tuple):
        raise ConfigError(f"search.objectives is {nodes!r}. Allowed: a list of {{metric: ..., direction: ...}}.")
    return tuple(read_objective(node, f"search.objectives[{index}]") for index, node in enumerate(nodes or ()))
