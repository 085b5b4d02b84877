"""Slots whose workers stand at the far end of a wire: what all of them have in common, however they are started."""

from __future__ import annotations

import atexit
import logging
import pickle
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol

from rfflow.runs.events import Command, Heard, Lost, Up
from rfflow.slots.serve import packed

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds that a worker is given to end in order..."""
_LOOK = 0.05
"""... and those between two looks whether it has."""


TOO_EARLY = " before it could begin"
OWN_WORDS = "; its own words stand above"


class Body(Protocol):
    """Whatever a worker runs in."""

    @property
    def ended(self) -> int | None:
        """What can be waited for until it has ended, where that can be: what it has forked may hold its wire open."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def join(self, timeout: float) -> bool:
        """Wait until it has ended, up to so many seconds; return whether it has."""
        ...

    def how_ended(self, *, has_begun: bool) -> str:
        """Say how it has ended, after its worker has begun or before: "its process was killed by signal 9"."""
        ...

    def would_end_again(self) -> bool:
        """Whether another one that has not come to begin would end in the same way."""
        ...

    def forget(self) -> None:
        """Let go of what is held of it here; nothing is asked of it any more."""
        ...


@dataclass
class Link:
    """The near end of a worker."""

    body: Body
    wire: Any
    """A :class:`multiprocessing.connection.Connection`; commands go in, events come out."""
    nudges: Any
    """Only for :meth:`WiredSlots.hurry`, which a signal may call in the middle of a command."""
    pid: int | None = None
    """The worker's process, once it is known."""
    is_up: bool = False
    """Whether it has begun."""

    def close(self) -> None:
        """Let go of it."""
        self.wire.close()
        self.nudges.close()
        self.body.forget()


class WiredSlots(ABC):
    """Workers that are started when the first run comes to their slots.

    Args:
        count: how many slots there are.
    """

    def __init__(self, count: int):
        self.count = count
        self._links: dict[int, Link] = {}
        # Before Python's own, which would wait for processes that wait for this one.
        atexit.register(self._end_all)

    @abstractmethod
    def _start(self, slot: int) -> Link:
        """Start a worker; what is sent to it before it can listen must not be lost."""

    def open(self) -> None:  # noqa: B027
        """Start nothing yet: a worker is started when the first run comes to its slot."""

    def send(self, slot: int, command: Command) -> None:
        """Give a worker a command, starting it where there is none.

        Raises:
            ConfigError: if what it holds cannot go to another process.
        """
        data = packed(command)
        if slot not in self._links:
            self._links[slot] = self._start(slot)
        try:
            self._links[slot].wire.send_bytes(data)
        except OSError:  # it is gone; hear() will tell
            log.debug("The worker of slot %s is gone", slot)

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for the next event of any worker."""
        ready_of: dict[Any, int] = {link.wire: slot for slot, link in self._links.items()}
        ready_of |= {link.body.ended: slot for slot, link in self._links.items() if link.body.ended is not None}
        for ready in connection.wait(list(ready_of), timeout):
            slot = ready_of[ready]
            wire = self._links[slot].wire
            try:
                if not wire.poll():  # it has ended, and all that it has told was heard
                    return self._bury(slot)
                heard: Heard = pickle.loads(wire.recv_bytes())
            except (EOFError, OSError):
                return self._bury(slot)
            if isinstance(heard.event, Lost):
                self._bury(slot)
            elif isinstance(heard.event, Up):
                self._links[slot].pid, self._links[slot].is_up = heard.event.pid, True
            return heard
        return None

    def hurry(self) -> None:
        """Make every worker leave its chunk at the next place from which a resume is exact."""
        for link in self._links.values():
            try:
                link.nudges.send_bytes(b"")
            except OSError:
                continue

    def kill(self, slot: int) -> None:
        """End a worker that does not answer any more; hear() will tell that it is gone."""
        if (link := self._links.get(slot)) is not None:
            link.body.kill()

    def pid(self, slot: int) -> int | None:
        """Return the process of a slot's worker, where there is one that has told."""
        link = self._links.get(slot)
        return None if link is None else link.pid

    def close(self) -> None:
        """End every worker in order, and those that do not end, at once."""
        for link in self._links.values():
            try:
                link.wire.send_bytes(packed(None))
            except OSError:
                continue
        until = time.monotonic() + _PATIENCE
        for link in self._links.values():
            self._end(link, until)
            link.close()
        self._links.clear()
        atexit.unregister(self._end_all)

    def _end_all(self) -> None:
        """Leave nobody behind where this process ends without :meth:`close`."""
        for link in self._links.values():
            link.body.kill()

    def _end(self, link: Link, until: float) -> None:
        """Wait for the end of a worker that was told to; read what it still tells, so that it is not held up by it."""
        try:
            while not link.body.join(0) and time.monotonic() < until:
                if link.wire.poll(_LOOK):
                    link.wire.recv_bytes()
        except (EOFError, OSError):
            pass  # nothing more will be told
        if not link.body.join(max(0.0, until - time.monotonic())):
            link.body.kill()
            link.body.join(_PATIENCE)

    def _bury(self, slot: int) -> Heard:
        link = self._links.pop(slot)
        link.body.join(_PATIENCE)
        how = link.body.how_ended(has_begun=link.is_up)
        link.close()
        return Heard(slot, None, Lost(how, is_for_good=not link.is_up and link.body.would_end_again()))
