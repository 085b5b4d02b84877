"""The Fabric of an experiment: it finds the device, saves and loads, and carries loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric import Fabric

from rfflow.errors import ConfigError
from rfflow.signatures import check_node
from rfflow.spec import ExperimentSpec, Node
from rfflow.training.checkpoint import SafetensorsIO
from rfflow.training.sources import import_object


def make_fabric(spec: ExperimentSpec) -> Fabric:
    """Make the Fabric that finds the device, saves and loads, and carries loggers and callbacks.

    Loggers that have hooks (``on_chunk_end``, ...) hear them too.

    Raises:
        ConfigError: if a logger or callback cannot be made, or the device is not there.
    """
    loggers = [_instantiate(node, f"loggers.{name}") for name, node in spec.loggers.items()]
    callbacks = [_instantiate(node, f"callbacks.{name}") for name, node in spec.callbacks.items()]
    hearing = [logger for logger in loggers if any(name.startswith("on_") for name in dir(logger))]
    try:
        return Fabric(
            accelerator=spec.accelerator,
            devices=1,
            plugins=[SafetensorsIO()],
            loggers=loggers,
            callbacks=[*hearing, *callbacks],
        )
    except (ValueError, RuntimeError) as error:  # Lightning's MisconfigurationException among them
        raise ConfigError(f"engine.accelerator is {spec.accelerator!r}: {error}") from error


def _instantiate(node: Node, where: str) -> Any:
    import_object(str(node.get("_target_")), f"{where}._target_")  # for its better message
    check_node(node, where)
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: cannot make {node.get('_target_')!r}: {error.__cause__ or error}") from error


def namespaced(run: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as loggers get them: ``3/train/loss``, ``3/eval/loss``."""
    return {
        f"{run}/eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"{run}/train/{key}": value
        for key, value in metrics.items()
    }
