"""The far end of a slot: a worker that is told what to do over a wire, and tells what comes of it over the same.

Nothing here decides anything. Whoever holds the other end of the wire and lets go of it, on purpose or because its
process is gone, ends the worker at once: what is on the disk by then is where its runs go on from.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rfflow.confidential import known_secrets, learn_secrets, without_secrets
from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError, RfflowError, WorkerError
from rfflow.runs.events import Command, Event, Failed, Heard, Lost, Refused, Said, Train, Unsaved, Up

_LOOK = 1.0
"""Seconds between two looks whether the engine's process is there still."""


class Wire(Protocol):
    """One end of a connection; what is sent arrives whole and in order."""

    def send_bytes(self, data: bytes) -> None:
        """Send some bytes, which may be none."""
        ...

    def recv_bytes(self) -> bytes:
        """Wait for what the other end sends.

        Raises:
            EOFError, OSError: if the other end is gone.
        """
        ...

    def poll(self, timeout: float) -> bool:
        """Return whether there is something to receive, or the other end is gone, within so many seconds."""
        ...


@dataclass(frozen=True)
class Seat:
    """All that a worker must be told before its first command; pickled, it imports nothing that needs torch."""

    slot: int
    spec: ExperimentSpec
    make_worker: Callable[[ExperimentSpec, Callable[..., None]], Any] | None = None
    """Makes a worker that tells by the function it gets; ``None`` for the one that trains."""
    start_method: str = "fork"
    """How a run's own processes are started, those of a ``DataLoader`` say: as where there is one device."""


class _Mailbox:
    """Commands that have come, in order."""

    def __init__(self) -> None:
        self._commands: deque[Command | None] = deque()
        self._changed = threading.Condition()

    def put(self, command: Command | None) -> None:
        """Add one; None is the last."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def get(self) -> Command | None:
        """Wait for the next."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._commands))
            return self._commands.popleft()

    def get_beside_training(self) -> Command | None:
        """Return the next if it can be carried out while a run is in the middle of its chunk."""
        with self._changed:
            if not self._commands or self._commands[0] is None or isinstance(self._commands[0], Train):
                return None
            return self._commands.popleft()


def serve(seat: Seat, wire: Wire, nudges: Wire) -> None:
    """Carry out what comes over a wire until it ends.

    Args:
        seat: where this is.
        wire: brings commands and takes events.
        nudges: brings something whenever there is hurry.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever sent one sent it to the engine's process, too, which decides
    multiprocessing.set_start_method(seat.start_method, force=True)  # it is the one by which this process was started
    mailbox, lock = _Mailbox(), threading.Lock()

    def tell(run: int | None, event: Event) -> None:
        data = _portable(Heard(seat.slot, run, event))
        with lock:
            wire.send_bytes(data)

    _hand_on_logs(tell)
    try:
        worker = (seat.make_worker or _make_worker)(seat.spec, tell)
    except Exception as error:
        tell(None, Lost(f"it cannot begin: {type(error).__name__}: {error}", is_for_good=True))
        return
    threading.Thread(target=_listen, args=(wire, mailbox, tell), daemon=True).start()
    threading.Thread(target=_listen_for_hurry, args=(nudges, worker), daemon=True).start()
    tell(None, Up(os.getpid(), worker.device))
    while (command := mailbox.get()) is not None:
        for event in worker.do(command):
            tell(command.run, event)
        while (told := worker.advance()) is not None:
            tell(*told)
            _do_beside_training(worker, mailbox, tell)
    worker.close()


_CANNOT_TRAVEL = (
    "Run {run} cannot be given to another process: {error}. What it is made of must be importable there: functions of "
    "a module, or of the script that is run, and nothing made in a notebook or inside a function. Or train on one "
    "device, in this process: engine.devices=1."
)


def packed(command: Command | None) -> bytes:
    """Pickle a command, so that the other end knows whose it is even if it cannot read it, and what it may not show.

    Raises:
        ConfigError: if it holds what cannot be pickled.
    """
    run = None if command is None else command.run
    try:
        return pickle.dumps((run, known_secrets(), pickle.dumps(command)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(_CANNOT_TRAVEL.format(run=run, error=error)) from error


def _listen(wire: Wire, mailbox: _Mailbox, tell: Callable[..., None]) -> None:
    """Take commands as they come, so that the end of the engine is heard in the middle of a chunk."""
    engine = multiprocessing.parent_process()
    while True:
        try:
            while not wire.poll(_LOOK):
                if engine is not None and os.getppid() != engine.pid:  # what it has forked may hold the wire open
                    raise EOFError
            data = wire.recv_bytes()
        except (EOFError, OSError):
            _leave()  # the engine is gone; nobody would hear what is trained from here on
        run, secrets, command = pickle.loads(data)
        learn_secrets(secrets)
        try:
            mailbox.put(pickle.loads(command))
        except Exception as error:  # a class or function that is not there under its name in this process
            tell(run, Refused(ConfigError(_CANNOT_TRAVEL.format(run=run, error=error))))


def _leave() -> None:
    """End this process at once, and what it has started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            child.kill()
    os._exit(0)


def _listen_for_hurry(nudges: Wire, worker: Any) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            nudges.recv_bytes()
            worker.hurry()


def _do_beside_training(worker: Any, mailbox: _Mailbox, tell: Callable[..., None]) -> None:
    while (command := mailbox.get_beside_training()) is not None:
        for event in worker.do(command):
            tell(command.run, event)


def _make_worker(spec: ExperimentSpec, tell: Callable[..., None]) -> Any:
    from rfflow.worker.device import make_device_fabric
    from rfflow.worker.memory.allocator import keep_freed_memory
    from rfflow.worker.worker import Worker

    fabric = make_device_fabric(spec)
    fabric.seed_everything(spec.seed, workers=False, verbose=False)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return Worker(spec, fabric, tell)


def _portable(heard: Heard) -> bytes:
    """Pickle an event; an error that cannot travel is told by its kind and words."""
    event = heard.event
    if isinstance(event, Failed | Refused | Unsaved) and not _travels(event.error):
        error = WorkerError(type(event.error).__name__, str(event.error))
        heard = replace(heard, event=replace(event, error=error))
    return pickle.dumps(heard)


def _travels(error: BaseException) -> bool:
    """Whether an error comes out of a pickle: many of libraries' own are made of more than their words."""
    if not isinstance(error, RfflowError | OSError):
        return False
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


class _Telling(logging.Handler):
    """Hands on what rfflow says, and what libraries warn of."""

    def __init__(self, tell: Callable[..., None]):
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and record.name.partition(".")[0] != "rfflow":
            return
        self._tell(None, Said(record.name, record.levelno, without_secrets(record.getMessage())))


def _hand_on_logs(tell: Callable[..., None]) -> None:
    """Let what is logged in this process be said where people look; while a run has it, the run's own log hears it."""
    logging.getLogger("rfflow").setLevel(logging.INFO)
    logging.getLogger().addHandler(_Telling(tell))
