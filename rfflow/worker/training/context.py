"""What a trainer keeps in process-wide places, and how it becomes the property of one run.

Trainers were written to be alone in their process. They draw from global random generators, and accelerate keeps its
state in class attributes. :class:`RunContext` puts all of that in place when a run gets the device and takes it away
when the run gives it back, so that a run never notices the others. What turns out to be global tomorrow goes here too.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import io
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig

from rfflow.confidential import without_secrets
from rfflow.worker.training.clients import (
    Clients,
    end_in_mlflow,
    for_a_named_run,
    left_in_mlflow,
    read_clients,
    set_clients,
)
from rfflow.worker.training.signals import Handlers, give_handlers, own_handlers, read_handlers, set_handlers
from rfflow.worker.training.torch_settings import of_a_new_run, read_torch_settings, set_torch_settings

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

    def equals(self, other: RandomState) -> bool:
        """Whether what is drawn next is the same."""
        same_device = (self.device is None) == (other.device is None) and (
            self.device is None or other.device is None or torch.equal(self.device, other.device)
        )
        mine, theirs = self.numpy, other.numpy
        same_numpy = mine[0] == theirs[0] and np.array_equal(mine[1], theirs[1]) and mine[2:] == theirs[2:]
        return self.python == other.python and same_numpy and torch.equal(self.cpu, other.cpu) and same_device

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
    torch_settings: dict[str, Any]
    hydra: Any
    cwd: str | None
    """None where the working directory has been deleted."""
    environ: dict[str, str]
    clients: Clients
    warnings: tuple[Any, ...]
    """Who shows a warning, who did before the log took them over, and the filters, first to last."""
    garbage: tuple[bool, Any]
    """Whether it is collected, and how often."""

    @classmethod
    def capture(cls, device: torch.device) -> GlobalState:
        """Take a snapshot."""
        return cls(
            random=RandomState.capture(device),
            # The dicts themselves are shared with every instance alive, so contents move and the dicts stay.
            accelerate=tuple(dict(state._shared_state) for state in _SHARED),
            torch_settings=read_torch_settings(),
            hydra=HydraConfig.instance().cfg,
            cwd=_cwd(),
            environ=dict(os.environ),
            clients=read_clients(),
            warnings=(warnings.showwarning, getattr(logging, _CAPTURED, None), *warnings.filters),
            garbage=(gc.isenabled(), gc.get_threshold()),
        )

    def restore(self, device: torch.device, seen: GlobalState | None = None) -> None:
        """Put the snapshot in place of what is there, which is ``seen`` where somebody has just looked."""
        seen = seen or GlobalState.capture(device)
        for state, saved in zip(_SHARED, self.accelerate, strict=True):
            shared = state._shared_state
            shared.clear()
            shared.update(saved)
        set_torch_settings(self.torch_settings, seen.torch_settings)
        HydraConfig.instance().cfg = self.hydra
        if self.cwd is not None and self.cwd != seen.cwd:
            try:
                os.chdir(self.cwd)
            except FileNotFoundError:  # deleted meanwhile; whoever needs it will say so
                log.warning("The working directory %s is gone", self.cwd)
        if self.environ != seen.environ:
            _set_environ(self.environ)
        set_clients(self.clients, seen.clients)
        if self.warnings != seen.warnings:
            _set_warnings(*self.warnings)
        if self.garbage != seen.garbage:
            _set_garbage(*self.garbage)
        # Last: nothing after this may draw.
        self.random.restore(device)


class Stay:
    """How a run has the device for a while: set ``is_brief`` where it will be back soon, and has only waited."""

    def __init__(self, is_brief: bool = False):
        self.is_brief = is_brief


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
            torch_settings=of_a_new_run(outer.torch_settings),
            hydra=hydra or outer.hydra,
            cwd=str(job.runtime.output_dir) if job and job.job.chdir else outer.cwd,
            environ={**outer.environ, **({key: str(value) for key, value in job.job.env_set.items()} if job else {})},
            clients=outer.clients,
            warnings=outer.warnings,
            garbage=outer.garbage,
        )
        self._handlers: Handlers = {}
        """Those of signals that the run has set."""
        self.variables = contextvars.copy_context()
        """The run's context variables, to call its functions in: nobody can swap those from outside."""
        self._capture_output = capture_output
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = _LogFile(log)
        self._before = outer.clients
        self._given: Mapping[str, str] = {}
        self.switch_seconds = 0.0
        """Time spent on entering and leaving, over the life of the run."""

    @property
    def cwd(self) -> Path:
        """Where the run stands."""
        return Path(self._inner.cwd or ".")

    @contextlib.contextmanager
    def active(self, is_brief: bool = False) -> Iterator[Stay]:
        """Make everything global the run's own; on the way out, keep it and put back what was there before.

        Args:
            is_brief: the run has left at a brief stay: it takes for granted that libraries' loggers are as they were,
                as it does on the way out where the stay is set to be brief then.
        """
        stay = Stay()
        entering = time.perf_counter()
        outer, handlers = GlobalState.capture(self._device), read_handlers()
        seen = None
        with self._log.attached(self._capture_output, is_brief, stay):
            try:
                self._inner.restore(self._device, outer)
                give_handlers(self._handlers, handlers)
                self.switch_seconds += time.perf_counter() - entering
                try:
                    yield stay
                finally:
                    leaving = time.perf_counter()
                    seen_handlers = read_handlers()
                    set_handlers(handlers, seen_handlers)
                    self._handlers = own_handlers(handlers, seen_handlers)
                    self._inner = seen = GlobalState.capture(self._device)
            finally:
                outer.restore(self._device, seen)
        self.switch_seconds += time.perf_counter() - leaving

    def give(self, environ: Mapping[str, str]) -> None:
        """Let the run find this in its environment from now on; once, as it may take it away itself.

        A tracker's run that is named there takes the place of one that was active when ours began.
        """
        if environ == self._given:
            return
        self._given = dict(environ)
        clients = for_a_named_run(self._inner.clients, self._before, environ)
        if clients is not None:
            self._inner = replace(self._inner, environ={**self._inner.environ, **environ}, clients=clients)

    def close(self, status: str = "KILLED") -> None:
        """End what the run has begun in MLflow and left, and close the log file.

        Args:
            status: MLflow's word for how the run has ended.
        """
        try:
            if left := left_in_mlflow(self._inner.clients, self._before, self._given):
                with self.active():
                    end_in_mlflow(left, status)
        finally:
            self._log.close()


class _Masked(io.TextIOWrapper):
    """A file of text in which secrets that this process has read from a configuration are not written as they are."""

    def write(self, text: str, /) -> int:
        super().write(without_secrets(text))
        return len(text)


class _LogFile:
    """A run's log: what it logs, and what libraries print while it has the device."""

    def __init__(self, path: Path):
        self._stream: TextIO = _Masked(open(path, "ab"), encoding="utf-8", line_buffering=True)  # noqa: SIM115 - as long as the run
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._added: list[logging.Handler] = []
        """Handlers that the run itself has put on the root logger."""
        self._level: int | None = None
        """The root logger's level, once the run has had it."""
        self._manners: dict[logging.Logger, _Manner] = {}
        """What the run has changed of other loggers, as ``trainer.args.log_level`` does of transformers'."""
        self._seen: tuple[dict[logging.Logger, _Manner], list[Any]] | None = None
        """What libraries had set when the run last looked."""

    @contextlib.contextmanager
    def attached(self, capture_output: bool, is_brief: bool, stay: Stay) -> Iterator[None]:
        """Send the log, and with ``capture_output`` also what is printed, to the file.

        With ``capture_output`` only this file hears the log: the terminal belongs to the table of runs.
        """
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        given = [self._handler] if capture_output else [*handlers, self._handler]
        root.handlers[:] = [*given, *self._added]
        _set_level(root, self._level if self._level is not None else level)
        manners, library_handlers = self._seen = self._seen if is_brief and self._seen else _libraries()
        known = list(logging.root.manager.loggerDict)
        for logger, own in self._manners.items():
            _set_manner(logger, own)
        stdout, stderr = sys.stdout, sys.stderr
        redirected: dict[Any, Any] = {}
        if capture_output:
            sys.stdout = sys.stderr = self._stream
            terminal = (stdout, stderr, sys.__stdout__, sys.__stderr__)
            redirected = {handler: handler.stream for handler in library_handlers if handler.stream in terminal}
            for handler in redirected:
                handler.stream = self._stream  # setStream() would flush what nobody has written to
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
            now, library_handlers = self._seen if stay.is_brief else _libraries()
            self._seen = manners, library_handlers
            for handler in library_handlers:
                if handler.stream is self._stream:  # also those of libraries that were imported meanwhile
                    handler.stream = redirected.get(handler, stderr)
            if not stay.is_brief:
                self._manners = _changes(manners, now, known) if now != manners else {}
            for logger in self._manners:
                _set_manner(logger, manners.get(logger, _PLAIN))
            self._added = [handler for handler in root.handlers if handler not in given]
            self._level = root.level
            root.handlers[:] = handlers
            _set_level(root, level)

    def close(self) -> None:
        # A disk that has no room for the last line: it is closed all the same.
        with contextlib.suppress(io.UnsupportedOperation, OSError):
            self._stream.close()


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_Manner = tuple[int, bool, bool]
"""A logger's level, whether it hands on what it hears, and whether it hears anything."""
_PLAIN: _Manner = (logging.NOTSET, True, False)


def _libraries() -> tuple[dict[logging.Logger, _Manner], list[Any]]:
    """Return how loggers are set where they are not as Python makes them, and their own handlers.

    Libraries (transformers, torch, ...) write past the root logger with those, each to its stream.
    """
    # Some eight hundred, of which a dozen are set: this line is what a switch would spend half its time on.
    placeholder = logging.PlaceHolder
    loggers: list[Any] = [
        logger
        for logger in list(logging.root.manager.loggerDict.values())
        if logger.__class__ is not placeholder
        and (logger.level or logger.handlers or logger.disabled or not logger.propagate)  # type: ignore[union-attr]
    ]
    manners = {logger: (logger.level, logger.propagate, logger.disabled) for logger in loggers}
    handlers = [one for logger in loggers for one in logger.handlers if isinstance(one, logging.StreamHandler)]
    return manners, handlers


def _changes(
    before: Mapping[logging.Logger, _Manner], after: Mapping[logging.Logger, _Manner], known: Iterable[str]
) -> dict[logging.Logger, _Manner]:
    """Return what has changed of loggers that were there before; a library that came sets its own for everybody."""
    names = set(known)
    loggers = [logger for logger in before.keys() | after.keys() if logger.name in names]
    now = {logger: after.get(logger, _PLAIN) for logger in loggers}
    return {logger: manner for logger, manner in now.items() if manner != before.get(logger, _PLAIN)}


def _set_manner(logger: logging.Logger, manner: _Manner) -> None:
    level, logger.propagate, logger.disabled = manner
    _set_level(logger, level)


def _set_level(logger: logging.Logger, level: int) -> None:
    if logger.level != level:  # setting it empties a cache of every logger
        logger.setLevel(level)


def _set_environ(wanted: Mapping[str, str]) -> None:
    for key in set(os.environ) - set(wanted):
        del os.environ[key]
    os.environ.update(wanted)


_CAPTURED = "_warnings_showwarning"
"""Where ``logging.captureWarnings`` notes that it is done, so that another run's would do nothing."""


def _set_warnings(show: Any, captured: Any, *filters: Any) -> None:
    warnings.showwarning = show
    setattr(logging, _CAPTURED, captured)
    warnings.resetwarnings()  # which also says that what was remembered of the filters holds no more
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _set_garbage(is_collected: bool, threshold: Any) -> None:
    gc.set_threshold(*threshold)
    if is_collected:
        gc.enable()
    else:
        gc.disable()
