"""The model of one run, with a base of its own: what one does with it touches nobody else's."""

from __future__ import annotations

from typing import Any

from rfflow.config.spec import ExperimentSpec, MemorySpec
from rfflow.runs.finished import FinishedRun
from rfflow.worker.device import make_device_fabric
from rfflow.worker.finished.loading import load_adapter, load_base_of, load_whole
from rfflow.worker.memory.memory import Memory


def load_alone(run: FinishedRun, accelerator: str = "auto") -> Any:
    """Return a ``PeftModel``, or the whole model of a run that trained every weight; on the device, to evaluate.

    Args:
        run: what it has left.
        accelerator: as Lightning Fabric names it.

    Raises:
        ConfigError: if its base is gone or has other weights, or it cannot be loaded.
    """
    fabric = make_device_fabric(ExperimentSpec("load", accelerator=accelerator))
    if run.adapter is not None:
        return fabric.to_device(load_adapter(load_base_of(run, fabric).model, run))
    Memory(fabric, MemorySpec()).require_base(str(run.folder), {"dtype": "auto"})
    return fabric.to_device(load_whole(run))
