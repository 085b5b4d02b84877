"""The device that a worker stands on, as Lightning Fabric finds it."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment

from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError
from rfflow.worker.models.safetensors_io import SafetensorsIO


def make_device_fabric(spec: ExperimentSpec, **kwargs: Any) -> Fabric:
    """Make a Fabric that has the device, saves and loads; loggers and callbacks are up to the caller.

    Raises:
        ConfigError: if the device is not there.
    """
    # Not left to be found out: under torchrun, SLURM and others Fabric would count on processes that there are not.
    alone = LightningEnvironment()
    alone.set_global_rank(0)
    try:
        return Fabric(accelerator=spec.accelerator, devices=1, plugins=[SafetensorsIO(), alone], **kwargs)
    except (ValueError, RuntimeError) as error:  # Lightning's MisconfigurationException among them
        raise ConfigError(f"engine.accelerator is {spec.accelerator!r}: {error}") from error
