"""Which devices of this machine an experiment trains on: ``engine.devices``, and what each one's process is shown."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rfflow.config.spec import BuiltSpec, ExperimentSpec, RunSpec
from rfflow.errors import ConfigError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """One that a worker stands on."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its process finds there, from before its first import."""


def find_devices(
    spec: ExperimentSpec, environ: Mapping[str, str] = os.environ, count_gpus: Callable[[], int] | None = None
) -> list[Device]:
    """Return the devices that an experiment asks for.

    Args:
        spec: says which: ``auto`` is every GPU that is visible, or else the CPU once; a number is so many of them; a
            list are places in the list of those that are visible.
        environ: may show fewer GPUs than there are.
        count_gpus: counts those that there are; torch's own count, if it is not given.

    Raises:
        ConfigError: naming what was asked for, and what there is.
    """
    asked = spec.devices
    gpus = _visible_gpus(environ, count_gpus or _count_gpus) if spec.accelerator in ("auto", "cuda", "gpu") else []
    if not gpus:
        return _cpus(asked, environ)
    chosen: Sequence[int]
    if asked == "auto":
        chosen = range(len(gpus))
    elif isinstance(asked, int):
        if asked > len(gpus):
            raise ConfigError(f"engine.devices is {asked}, but {_there_are(gpus, environ)}")
        chosen = range(asked)
    elif len(asked) == len(gpus) == 1:  # an earlier experiment of this process may have chosen it
        chosen = (0,)
    else:
        for place in asked:
            if place >= len(gpus):
                raise ConfigError(
                    f"engine.devices is {list(asked)}, but {_there_are(gpus, environ)} "
                    f"Allowed: numbers from 0 to {len(gpus) - 1}, counted among those that are visible."
                )
        chosen = asked
    return [Device(f"cuda {gpus[place]}", {VISIBLE: gpus[place]}) for place in chosen]


def with_what_can_travel(spec: ExperimentSpec, runs: Iterable[RunSpec]) -> ExperimentSpec:
    """Let an experiment train in this process where nobody asked for another and its runs cannot go to one.

    A function of a notebook, or one made inside another, has no name by which a second process could find it.
    """
    if spec.devices != "auto" or all(_can_travel(run.build) for run in runs if isinstance(run, BuiltSpec)):
        return spec
    log.warning(
        "What builds the trainers cannot be given to another process, so they train on one device. For more, put the "
        "function into a module."
    )
    return replace(spec, devices=1)


def _can_travel(build: Any) -> bool:
    function = getattr(build, "func", build)
    if getattr(function, "__module__", None) == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        return False
    try:
        pickle.dumps(build)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _cpus(asked: Literal["auto"] | int | tuple[int, ...], environ: Mapping[str, str]) -> list[Device]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked == "auto":
        return [Device("cpu")]
    if not isinstance(asked, int):
        if list(asked) == [0]:
            return [Device("cpu")]
        raise ConfigError(
            f"engine.devices is {list(asked)}, which are GPUs, but none is visible. "
            "On a CPU: how many workers, as in engine.devices=2."
        )
    if asked > cores:
        raise ConfigError(f"engine.devices is {asked}, but this process has {cores} cores, and a worker takes one.")
    if asked == 1:
        return [Device("cpu")]
    threads = environ.get("OMP_NUM_THREADS") or str(max(1, cores // asked))
    return [Device("cpu", {"OMP_NUM_THREADS": threads})] * asked


def _visible_gpus(environ: Mapping[str, str], count: Callable[[], int]) -> list[str]:
    """Return the GPUs that are visible, by what shows them: numbers, or the ids of MIG instances."""
    shown = environ.get(VISIBLE)
    if shown is None:
        return [str(place) for place in range(count())]
    names = [name.strip() for name in shown.split(",") if name.strip()]
    if names and names[0] in ("-1", "NoDevFiles"):  # how people hide all of them
        return []
    return names if names and count() else []


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()  # asks the driver, and makes no context


def _there_are(gpus: Sequence[str], environ: Mapping[str, str]) -> str:
    how = f" ({VISIBLE}={environ[VISIBLE]})" if VISIBLE in environ else ""
    return f"{len(gpus)} {'GPU is' if len(gpus) == 1 else 'GPUs are'} visible{how}."
