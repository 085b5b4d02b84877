"""Standard output and error that outlive whoever reads them: a terminal, a pipe or a log file decides nothing."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

NEAREST = "rfflow.nearest"
"""An error handler for encodings: what a stream cannot show is shown by what comes nearest."""

_PLAIN = {"─": "-", "·": "-", "…": "~", "★": "*"}
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET)
"""What a pipe without a reader and a closed terminal answer; nobody will come back to them."""


def outlive_viewers() -> None:
    """Let nothing that is printed from here on fail, whatever becomes of those who read it.

    What cannot be written is passed over, and what was closed at the start is opened as nothing. Streams that are not
    the process's own (a notebook's, say) are left as they are. It may be called again.
    """
    _hold_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif (lasting := _lasting(stream)) is not None:
            setattr(sys, name, lasting)
            if getattr(sys, f"__{name}__") is stream:
                setattr(sys, f"__{name}__", lasting)
            for handler in stream_handlers():
                if handler.stream is stream:
                    handler.stream = lasting  # not by setStream, which would flush what may be broken


def stream_handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    """Return the log handlers that write to a stream which is not a file of their own."""
    for logger in [logging.root, *logging.Logger.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            # A FileHandler is a StreamHandler too, but its stream is its own.
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler


_screens: list[Callable[[str], None]] = []
"""What draws on the terminal, and knows where its own lines are."""


def announce(text: str) -> None:
    """Say something to people at once, also in a signal handler and while a run's output goes to its log."""
    if _screens:
        _screens[-1](text)
        return
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode("utf-8", "replace"))


def announce_on(screen: Callable[[str], None]) -> None:
    """Let announcements be shown by what draws on the terminal: printed past it, they would tear its lines apart."""
    _screens.append(screen)


def no_longer_on(screen: Callable[[str], None]) -> None:
    """Take that back; it may be called again."""
    if screen in _screens:
        _screens.remove(screen)


class _Lasting(io.FileIO):
    """Writes to a standard stream of the process as long as that can be done, and then to nowhere."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self._has_said = False

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # somebody has made it non-blocking, and it is full
                select.select([], [self], [])
        except OSError as error:
            self._lose(error)
            return memoryview(data).nbytes
        return written

    def _lose(self, error: OSError) -> None:
        if error.errno in _GONE:  # other writers of this process, and Python's own last flush, must not fail either
            with contextlib.suppress(OSError):
                _open_as_nothing(self.fileno())
        if not self._has_said and self.fileno() == 1:
            said = f"Standard output cannot be written to ({error.strerror}). All else goes on.\n"
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
        self._has_said = True


def _lasting(stream: Any) -> TextIO | None:
    """Return what to put in the place of a standard stream, if it is the process's own and not replaced yet."""
    if type(stream) is not io.TextIOWrapper:
        return None
    raw = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered (python -u), they are the same
    if type(raw) is not io.FileIO or raw.fileno() not in (1, 2):
        return None
    lasting = _Lasting(raw.fileno())
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        lasting if raw is stream.buffer else io.BufferedWriter(lasting),  # type: ignore[arg-type,unused-ignore]
        encoding=stream.encoding,
        errors=NEAREST,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _hold_descriptors() -> None:
    """Open what was closed at the start: else the next file that is opened is taken for the standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_as_nothing(descriptor)


def _open_as_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == descriptor:
        os.set_inheritable(descriptor, True)
        return
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _nearest(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # What Python could not decode in a file's name comes back as the bytes that it was.
    plain = (
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else _PLAIN.get(char, "?").encode("ascii")
        for char in error.object[error.start : error.end]
    )
    return b"".join(plain), error.end


codecs.register_error(NEAREST, _nearest)
