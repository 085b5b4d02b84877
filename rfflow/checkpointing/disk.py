"""Whether an error is the disk's: then no run is at fault, and the others would fail by it, too."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

from rfflow.errors import EngineError
from rfflow.files import shown, typed_command

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


class Told:
    """Turns an error of the disk into one that says what to do."""

    def __init__(self, what: str, root: Path):
        self._what = what
        self._root = root

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EngineError):
            raise unsaved(self._what, error, self._root) from error


def unsaved(what: str, error: BaseException, root: Path) -> EngineError:
    """Say that something could not be written, and how to go on once it can."""
    return EngineError(
        f"Cannot write {what}: {readable(error)}. Training has stopped, so that nothing is trained that "
        "would be lost; what was saved before stands. Make room or give the directory back, then: "
        f"{resume_command(root)}"
    )


def resume_command(root: Path) -> str:
    """Return the command that goes on with an experiment."""
    import shlex

    return f"{typed_command()} {shlex.quote('resume=' + shown(root))}"


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name that outlives the first; where the file system has no links, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.writing")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    os.replace(aside, target)
