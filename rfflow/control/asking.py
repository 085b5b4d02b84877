"""Asking something of a running experiment from another process: drop an op, wait for its answer.

::

    name = drop(control, {"op": "clone", "run": 0, "overrides": ["lr=5e-4"], "warm_start": True})
    reply = wait_for_reply(control, name, timeout=60)

``rfflow ctl`` and the tab in TensorBoard do it so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rfflow.control.items import DONE, REJECTED
from rfflow.control.ownership import living_owner
from rfflow.errors import OpError


@dataclass(frozen=True)
class Reply:
    """What the experiment says of an op."""

    is_applied: bool
    text: str
    """What came of it, or why it was refused."""


def drop(control: Path, document: Mapping[str, Any], by: str = "") -> str:
    """Put an op into the control directory in one step, never over another file; return the name it got there.

    Args:
        control: the directory.
        document: the op, as its file has it (:func:`rfflow.control.ops.parse` checks it).
        by: what the file is dropped by, as its name says (:func:`rfflow.control.filing.maker_of`): ``tab``, or nothing
            for ``rfflow ctl``.

    Raises:
        OpError: if the directory cannot be written to.
    """
    temporary = control / f".ctl-{os.getpid()}-{time.monotonic_ns()}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            yaml.safe_dump(dict(document), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        # The inbox takes a file at once if it was put in place after it was written, and the two must not fall into
        # the same tick of the file system's clock.
        written = time.time_ns() - 1_000_000_000
        os.utime(temporary, ns=(written, written))
        while True:
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))
            name = f"{moment}-{nanoseconds:09}-{document['op']}{by and f'-{by}'}.yaml"
            with contextlib.suppress(FileExistsError):
                _link(temporary, control / name)
                return name
    except OSError as error:
        raise OpError(f"Cannot write into {control}: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def reply_to(control: Path, name: str) -> Reply | None:
    """Return the answer to the op file of that name, or None where there is none yet."""
    for folder, suffix, is_applied in ((DONE, ".outcome", True), (REJECTED, ".error", False)):
        if (control / folder / name).exists():
            try:
                return Reply(is_applied, _note(control / folder / f"{name}{suffix}"))
            except OSError:
                return Reply(is_applied, folder)
    return None


def wait_for_reply(
    control: Path,
    name: str,
    timeout: float,
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Reply | None:
    """Wait until an op file is answered; return None where it still is not after ``timeout`` seconds.

    Raises:
        OpError: if the experiment has ended before it came to it.
    """
    deadline = clock() + timeout
    while True:
        # Asked before looking for the answer: an experiment that ends answers first.
        is_alive = living_owner(control) is not None
        if (reply := reply_to(control, name)) is not None:
            return reply
        if not is_alive:
            raise OpError(f"the experiment ended before it came to {control / name}.")
        if clock() >= deadline:
            return None
        sleep(0.05)


def _note(path: Path) -> str:
    # No link: whoever may write there could have others read for them what only those may read.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), encoding="utf-8", errors="replace") as file:
        return file.read().strip()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; the name holds nanoseconds, so nobody else has it
        os.rename(source, target)
