"""Whether an error is the disk's: then no run is at fault, and the others would fail by it, too."""

from __future__ import annotations

import errno
import os
import re

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""No room, none of one's own, none in one file, and no writing at all."""
_BROKEN = (errno.EIO, errno.ESTALE)

_TEXTS = re.compile(
    "|".join(
        (
            *(re.escape(os.strerror(number)) for number in (*_FULL, *_BROKEN)),
            *(rf"\b(?:os error|errno) {number}\b" for number in (*_FULL, *_BROKEN)),  # safetensors, arrow
            "PytorchStreamWriter failed",
            r"unexpected pos \d+ vs \d+",  # torch.save, at the end of a file that was cut short
            r"\d+ requested and \d+ written",  # numpy
        )
    ),
    re.IGNORECASE,
)


def too_long(error: BaseException) -> str | None:
    """Say in a sentence that a path is too long; ``None`` for any other error."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    path = os.fsdecode(error.filename or "")
    name = next((part for part in path.split(os.sep) if len(os.fsencode(part)) > 255), path)
    return (
        f"{name[:40]}… is too long: {len(os.fsencode(name))} bytes. File systems take 255 in a name, 4096 in a path. "
        "The paths of an experiment come of name, hydra.run.dir, hydra.sweep.dir, hydra.sweep.subdir and control.dir."
    )


def is_disk_trouble(error: BaseException) -> bool:
    """Whether a disk is full, or cannot be written to any more; some libraries say so in text alone."""
    return any(_says_so(one) for one in _causes(error)) or any(
        # What was on its way when this came up: torch and others put an error of their own in the place of the disk's.
        isinstance(one, OSError) and one.errno in _FULL
        for one in _contexts(error)
    )


def readable(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says, and what torch means by it."""
    text = str(error).strip().partition("\n")[0]
    hint = " (the disk took less than it was given: it is full)" if "unexpected pos" in text else ""
    return f"{type(error).__name__}: {text}{hint}"


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (*_FULL, *_BROKEN)
    return _TEXTS.search(str(error)) is not None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__
    return found


def _contexts(error: BaseException) -> list[BaseException]:
    """Return an error and what was being handled when it was raised."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return found
