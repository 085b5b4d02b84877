"""The process that an experiment has: one, whoever started it, and not ended by who looks on."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from rfflow.errors import ConfigError
from rfflow.files import shown, typed_command
from rfflow.tracking.streams import outlive_viewers

log = logging.getLogger(__name__)

_SIZES = {
    "WORLD_SIZE": "torchrun and accelerate launch set",
    "OMPI_COMM_WORLD_SIZE": "mpirun sets",
    "MV2_COMM_WORLD_SIZE": "mpirun sets",
    "PMI_SIZE": "mpiexec and srun set",
    "SLURM_STEP_NUM_TASKS": "srun sets",
}
"""Variables that hold a number of processes, and who sets them.

``SLURM_NTASKS`` is none: in a batch script it is what was asked for, and the script itself runs once.
"""
_SHARED_OUT = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
_IGNORED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""By these libraries would take the only process for one of several, and wait for the others."""


def settle() -> None:
    """Make of this process what an experiment needs; it may be called again.

    Raises:
        ConfigError: where there are other processes, or Python was started as nothing can be trained.
    """
    _check_is_main()
    outlive_viewers()
    if sys.flags.optimize > 1:
        raise ConfigError(
            "python -OO (PYTHONOPTIMIZE=2) takes away the docstrings that transformers reads; -O keeps them."
        )
    be_alone()
    allow_open_files()


def _check_is_main() -> None:
    """Refuse to begin in a worker process, which imports the script that was started to find what is in it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        file = getattr(sys.modules.get("__mp_main__"), "__file__", None)
        script = shown(Path(file)) if file else "the script"
        raise ConfigError(
            f"Each of several devices has a process that imports {script} again, which would start this "
            'experiment anew. Put what starts it under: if __name__ == "__main__":'
        )


def be_alone(environ: MutableMapping[str, str] = os.environ) -> None:
    """Refuse to be one of several processes; ignore what a launcher of a single one has said.

    Raises:
        ConfigError: where there are other processes, which would train the same runs into the same directory.
    """
    _check_alone(environ)
    found = [name for name in _IGNORED if name in environ]
    for name in (*found, *(name for name in environ if name.startswith("TORCHELASTIC_"))):
        del environ[name]
    if found:
        log.warning("Ignored, since an experiment is one process: %s", ", ".join(found))


def _check_alone(environ: Mapping[str, str]) -> None:
    for name, who in _SIZES.items():
        if (size := _number(environ.get(name))) > 1:
            raise _several(f"{size} processes: {name} is {size}, as {who} it", name)
    tasks = _number(environ.get("SLURM_NTASKS"))
    if tasks > 1 and (task := _number(environ.get("SLURM_PROCID"))) > 0:
        raise _several(f"{tasks} processes: SLURM_NTASKS is {tasks} and SLURM_PROCID {task}", "SLURM_PROCID")
    for name, what in _SHARED_OUT.items():
        if environ.get(name, "").lower() == "true":
            raise _several(f"a part of {what}: {name} is true, as accelerate launch sets it", name)


def _several(found: str, name: str) -> ConfigError:
    return ConfigError(
        f"rfflow was started as {found}. An experiment is started once, and makes a process for each of several "
        f"devices by itself (engine.devices=2): {typed_command()} ..., or torchrun --nproc-per-node 1, accelerate "
        f"launch --num_processes 1, srun --ntasks 1. Where the variable is only left over: unset {name}"
    )


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def allow_open_files() -> None:
    """Raise the limit of open files to what the system grants: every run keeps a log and its curves open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(hard, _MANY)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(runs: int, each: int) -> None:
    """Say that there are too many runs now, and not in the middle of the training by whatever could not be opened.

    Args:
        runs: how many there are.
        each: how many files each keeps open.

    Raises:
        ConfigError: with the limit that is needed.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = _OWN_FILES + runs * each
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ConfigError(
            f"{runs} runs keep {runs * each} files open (their logs and curves), but this process may open {limit} in "
            f"all. Raise the limit (ulimit -n {needed}), or take fewer runs."
        )


_MANY = 65536
_OWN_FILES = 20
"""What the process has open besides."""
