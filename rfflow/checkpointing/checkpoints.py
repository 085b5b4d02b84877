"""The checkpoints of a run: folders that are written aside, sealed with checksums, renamed, and found after a crash.

Torch-free: what lies in a folder is written by :mod:`rfflow.worker.training.snapshot`. A folder that has its name is
whole, and its seal proves that it still is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfflow.runs.owner import SECTION, Owner

log = logging.getLogger(__name__)

SEAL = "rfflow.json"
"""In every checkpoint: how far the run was, and the size and checksum of each file."""

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    path: Path
    step: int
    progress: Mapping[str, Any]
    """What the run had to show by then, as its writer gave it."""
    label: Mapping[str, Any] | None = None
    """Whose it is."""


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written: fill the folder, then :meth:`Checkpoints.seal` it."""

    folder: Path
    step: int


class Checkpoints:
    """The folder ``checkpoints`` of one run; ours in it are called ``step-<steps done>``.

    Whatever else is in there (the trainer's own ``checkpoint-*``, ``final``) is left alone.
    """

    def __init__(self, folder: Path, owner: Owner | None = None):
        """Open the folder.

        Args:
            folder: where they are.
            owner: the run whose they are; without one it is neither written nor checked.
        """
        self.folder = folder
        self._owner = owner

    def begin(self, step: int) -> Draft:
        """Make an empty folder to write to.

        Raises:
            OSError: if that cannot be; the run's directory is never made anew, because then its past is gone.
        """
        self.folder.mkdir(exist_ok=True)
        draft = Draft(self.folder / f".step-{step}.writing", step)
        shutil.rmtree(draft.folder, ignore_errors=True)
        draft.folder.mkdir()
        return draft

    def seal(self, draft: Draft, progress: Mapping[str, Any]) -> Path:
        """Make a checkpoint of a draft: when this returns, it is on the disk."""
        files = {}
        for file in sorted(draft.folder.iterdir()):
            files[file.name] = [file.stat().st_size, _checksum(file)]
            sync(file)
        content = {"version": 1, "step": draft.step, "files": files, "progress": progress}
        if self._owner is not None:
            content[SECTION] = self._owner.label(draft.step)
        text = json.dumps(content)
        seal = draft.folder / SEAL
        seal.write_text(f"{zlib.crc32(text.encode()):08x}\n{text}\n", encoding="utf-8")
        sync(seal)
        path = self.folder / f"step-{draft.step}"
        if path.exists():  # a damaged one, or one of a past that was given up
            shutil.rmtree(path)
        os.rename(draft.folder, path)
        sync(self.folder)
        return path

    def discard(self, draft: Draft) -> None:
        """Forget a draft."""
        shutil.rmtree(draft.folder, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the last checkpoint that is whole; what is not is said in the log.

        Raises:
            ForeignFile: if it is another run's: to go back to the one before would lose what this one has trained.
        """
        return next(self.good(), None)

    def good(self) -> Iterator[Checkpoint]:
        """Return the checkpoints that are whole, newest first."""
        for step in self.steps():
            path = self.folder / f"step-{step}"
            try:
                checkpoint = read(path)
            except DamagedCheckpoint as error:
                log.warning("%s Going back to the one before.", error)
                continue
            if self._owner is not None:
                self._owner.check(path, checkpoint.label, {step})
            yield checkpoint

    def steps(self) -> list[int]:
        """Return the steps at which there are checkpoints, whole or not, newest first."""
        try:
            names = [entry.name for entry in os.scandir(self.folder)]
        except FileNotFoundError:
            return []
        return sorted((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), reverse=True)

    def keep_only(self, steps: set[int]) -> None:
        """Remove the others."""
        for step in self.steps():
            if step not in steps:
                # Renamed first: half of a checkpoint must not look like one.
                gone = self.folder / f".step-{step}.gone"
                shutil.rmtree(gone, ignore_errors=True)
                os.rename(self.folder / f"step-{step}", gone)
                shutil.rmtree(gone, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a crash has left half written or half removed."""
        for left in [*self.folder.glob(".step-*.writing"), *self.folder.glob(".step-*.gone")]:
            shutil.rmtree(left, ignore_errors=True)


class DamagedCheckpoint(OSError):
    """A checkpoint is not what it was when it was sealed."""


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's seal and check every file against it.

    Raises:
        DamagedCheckpoint: naming the first file that is not right.
    """
    try:
        checksum, _, text = (path / SEAL).read_text(encoding="utf-8").partition("\n")
        text = text.removesuffix("\n")
        if int(checksum, 16) != zlib.crc32(text.encode()):
            raise ValueError("its checksum does not fit")
        seal = json.loads(text)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"The checkpoint {path} has no readable {SEAL}: {error}.") from error
    for name, (size, checksum) in seal["files"].items():
        file = path / name
        try:
            seen = file.stat().st_size
            if seen != size:
                raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {name} has {seen} bytes instead of {size}.")
            if _checksum(file) != checksum:
                raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {name} is not what was written.")
        except DamagedCheckpoint:
            raise
        except OSError as error:
            raise DamagedCheckpoint(f"The checkpoint {path} is damaged: {name}: {error.strerror}.") from error
    return Checkpoint(path, seal["step"], seal["progress"], seal.get(SECTION))


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            value = zlib.crc32(part, value)
    return value


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
