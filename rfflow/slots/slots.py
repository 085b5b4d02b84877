"""A slot is a device with a worker on it. The engine sends commands to slots and hears events; nothing else passes."""

from __future__ import annotations

from typing import Protocol

from rfflow.runs.events import Command, Heard


class Slots(Protocol):
    """All slots of an experiment, numbered from 0."""

    count: int

    def open(self) -> None:
        """Let there be a worker on every slot; called again after :meth:`close`, anew."""
        ...

    def send(self, slot: int, command: Command) -> None:
        """Give a worker a command. It is carried out after those before it; what comes of it is heard."""
        ...

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for the next event, up to ``timeout`` seconds; ``None`` when none came.

        Events of one slot come in the order in which they happened there.
        """
        ...

    def hurry(self) -> None:
        """Make whoever trains leave at the next place from which a resume is exact; safe in a signal handler."""
        ...

    def kill(self, slot: int) -> None:
        """End a worker that does not answer any more, as far as that can be; it is heard that it is lost."""
        ...

    def close(self) -> None:
        """End the workers in order: what they were writing is on the disk when this returns."""
        ...
