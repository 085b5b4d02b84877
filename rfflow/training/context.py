"""What a trainer keeps in process-wide places, and how it becomes the property of one run.

Trainers were written to be alone in their process. They draw from global random generators, and accelerate keeps its
state in class attributes. :class:`RunContext` puts all of that in place when a run gets the device and takes it away
when the run gives it back, so that a run never notices the others. What turns out to be global tomorrow goes here too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig

log = logging.getLogger(__name__)

_SHARED = (PartialState, AcceleratorState, GradientState)


@dataclass(frozen=True)
class RandomState:
    """The generators that trainers draw from."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: torch.Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """Read all generators; ``device`` names the accelerator whose generator counts."""
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.random.get_rng_state(),
            None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
        )

    def restore(self, device: torch.device) -> None:
        """Set all generators."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.random.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, device)


@contextlib.contextmanager
def unmoved_random_state(device: torch.device) -> Iterator[None]:
    """Whatever draws inside leaves the generators where they were."""
    state = RandomState.capture(device)
    try:
        yield
    finally:
        state.restore(device)


@dataclass(frozen=True)
class GlobalState:
    """One snapshot of everything global that a run may see or change."""

    random: RandomState
    accelerate: tuple[dict[str, Any], ...]
    torch_flags: dict[str, Any]
    hydra: Any
    cwd: str | None
    """None where the working directory has been deleted."""
    environ: dict[str, str]

    @classmethod
    def capture(cls, device: torch.device) -> GlobalState:
        """Take a snapshot."""
        return cls(
            random=RandomState.capture(device),
            # The dicts themselves are shared with every instance alive, so contents move and the dicts stay.
            accelerate=tuple(dict(state._shared_state) for state in _SHARED),
            torch_flags=_torch_flags(),
            hydra=HydraConfig.instance().cfg,
            cwd=_cwd(),
            environ=dict(os.environ),
        )

    def restore(self, device: torch.device) -> None:
        """Put the snapshot in place."""
        for state, saved in zip(_SHARED, self.accelerate, strict=True):
            shared = state._shared_state
            shared.clear()
            shared.update(saved)
        if self.torch_flags != _torch_flags():
            _set_torch_flags(self.torch_flags)
        HydraConfig.instance().cfg = self.hydra
        if self.cwd is not None and self.cwd != _cwd():
            try:
                os.chdir(self.cwd)
            except FileNotFoundError:  # deleted meanwhile; whoever needs it will say so
                log.warning("The working directory %s is gone", self.cwd)
        if self.environ != dict(os.environ):
            _set_environ(self.environ)
        # Last: nothing after this may draw.
        self.random.restore(device)


class RunContext:
    """The global state of one run, and its log file.

    ``with context.active():`` is the only way a trainer of ours is ever built, trained or evaluated.
    """

    def __init__(
        self,
        device: torch.device,
        log: Path,
        *,
        hydra: Any = None,
        capture_output: bool = True,
    ):
        outer = GlobalState.capture(device)
        job = hydra.hydra if hydra is not None else None  # run_job's directory and environment, which end with it
        self._device = device
        self._inner = GlobalState(
            random=outer.random,
            accelerate=({}, {}, {}),
            torch_flags=outer.torch_flags,
            hydra=hydra or outer.hydra,
            cwd=str(job.runtime.output_dir) if job and job.job.chdir else outer.cwd,
            environ={**outer.environ, **({key: str(value) for key, value in job.job.env_set.items()} if job else {})},
        )
        self._capture_output = capture_output
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = _LogFile(log)
        self.switch_seconds = 0.0
        """Time spent on entering and leaving, over the life of the run."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make everything global the run's own; on the way out, keep it and put back what was there before."""
        entering = time.perf_counter()
        outer = GlobalState.capture(self._device)
        with self._log.attached(self._capture_output):
            try:
                self._inner.restore(self._device)
                self.switch_seconds += time.perf_counter() - entering
                try:
                    yield
                finally:
                    leaving = time.perf_counter()
                    self._inner = GlobalState.capture(self._device)
            finally:
                outer.restore(self._device)
        self.switch_seconds += time.perf_counter() - leaving

    def close(self) -> None:
        """Close the log file."""
        self._log.close()


class _LogFile:
    """A run's log: what it logs, and what libraries print while it has the device."""

    def __init__(self, path: Path):
        self._stream: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the run
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._added: list[logging.Handler] = []
        """Handlers that the run itself has put on the root logger."""
        self._level: int | None = None
        """The root logger's level, once the run has had it."""

    @contextlib.contextmanager
    def attached(self, capture_output: bool) -> Iterator[None]:
        """Send the log, and with ``capture_output`` also what is printed, to the file.

        With ``capture_output`` only this file hears the log: the terminal belongs to the table of runs.
        """
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        given = [self._handler] if capture_output else [*handlers, self._handler]
        root.handlers[:] = [*given, *self._added]
        _set_level(root, self._level if self._level is not None else level)
        stdout, stderr = sys.stdout, sys.stderr
        redirected: dict[Any, Any] = {}
        if capture_output:
            sys.stdout = sys.stderr = self._stream
            terminal = (stdout, stderr, sys.__stdout__, sys.__stderr__)
            redirected = {handler: handler.stream for handler in _library_handlers() if handler.stream in terminal}
            for handler in redirected:
                handler.setStream(self._stream)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
            for handler in _library_handlers():
                if handler.stream is self._stream:  # also those of libraries that were imported meanwhile
                    handler.setStream(redirected.get(handler, stderr))
            self._added = [handler for handler in root.handlers if handler not in given]
            self._level = root.level
            root.handlers[:] = handlers
            _set_level(root, level)

    def close(self) -> None:
        with contextlib.suppress(io.UnsupportedOperation):
            self._stream.close()


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _library_handlers() -> Iterator[Any]:
    """The handlers with which libraries (transformers, torch, ...) write past the root logger, each to its stream."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from (handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))


def _set_level(logger: logging.Logger, level: int) -> None:
    if logger.level != level:  # setting it empties a cache of every logger
        logger.setLevel(level)


def _torch_flags() -> dict[str, Any]:
    flags = {
        "grad": torch.is_grad_enabled(),
        "default_dtype": torch.get_default_dtype(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "autocast_cache": torch.is_autocast_cache_enabled(),
    }
    for device_type in ("cpu", "cuda"):
        flags[f"autocast_{device_type}"] = torch.is_autocast_enabled(device_type)
        flags[f"autocast_dtype_{device_type}"] = torch.get_autocast_dtype(device_type)
    return flags


def _set_torch_flags(flags: Mapping[str, Any]) -> None:
    torch.set_grad_enabled(flags["grad"])
    torch.set_default_dtype(flags["default_dtype"])
    torch.set_float32_matmul_precision(flags["matmul_precision"])
    torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["deterministic_warn_only"])
    torch.backends.cudnn.deterministic = flags["cudnn_deterministic"]
    torch.backends.cudnn.benchmark = flags["cudnn_benchmark"]
    torch.backends.cudnn.allow_tf32 = flags["cudnn_tf32"]
    torch.set_autocast_cache_enabled(flags["autocast_cache"])
    for device_type in ("cpu", "cuda"):
        torch.set_autocast_enabled(device_type, flags[f"autocast_{device_type}"])
        torch.set_autocast_dtype(device_type, flags[f"autocast_dtype_{device_type}"])


def _set_environ(wanted: Mapping[str, str]) -> None:
    for key in set(os.environ) - set(wanted):
        del os.environ[key]
    os.environ.update(wanted)
