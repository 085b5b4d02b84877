"""One control directory, one experiment: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rfflow.errors import ConfigError
from rfflow.files import shown

LOCK_NAME = ".lock"
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Owner:
    """Who holds a control directory or an experiment's, as the lock file says."""

    pid: int
    host: str
    experiment: str
    """The experiment's directory."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, experiment {self.experiment}"


class Lock:
    """The right to answer the ops of a control directory.

    The kernel frees the lock when the process ends, however it ends. On a file system without locks (some network
    mounts) the owner's process id decides, which can tell only for processes of the same host.
    """

    refusal = (
        "The control directory {directory} belongs to another running experiment ({owner}). Give this one its own with "
        "control.dir=..., or end the other."
    )

    def __init__(self, directory: Path, experiment: Path | str, sleep: Callable[[float], None] = time.sleep):
        self.path = directory / LOCK_NAME
        self._owner = Owner(os.getpid(), socket.gethostname(), str(experiment))
        self._sleep = sleep
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: naming the owner, where another experiment has it.
        """
        for attempt in range(4):
            if self._try():
                return
            if attempt < 3:
                self._sleep(0.02)  # `rfflow ctl` touches the lock for an instant to see whether it is held
        owner = read_owner(self.path.parent)
        raise ConfigError(self.refusal.format(directory=self.path.parent, owner=owner or "unknown"))

    def is_intact(self) -> bool:
        """Whether the lock file that is held is still the one in the directory."""
        if self._file is None:
            return False
        try:
            there, held = os.stat(self.path, follow_symlinks=False), os.fstat(self._file)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def release(self) -> None:
        """Give the lock back."""
        if self._file is None:
            return
        if self.is_intact():
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self._file)
        self._file = None

    def _try(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise ConfigError(f"The directory {self.path.parent} cannot be used: {error}.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            if error.errno not in _NO_FLOCK or _is_alive(read_owner(self.path.parent)):
                os.close(file)
                return False
        previous, self._file = self._file, file
        if not self.is_intact():  # the owner before us removed the file between our open and our lock
            self._file = previous
            os.close(file)
            return False
        if previous is not None:
            os.close(previous)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(self._owner)).encode() + b"\n", 0)
        return True


class ExperimentLock(Lock):
    """The right to train in an experiment's directory."""

    refusal = (
        "The experiment in {directory} is still running ({owner}). Steer it with rfflow ctl, or end it first; a new "
        "one needs a directory of its own: hydra.sweep.dir=..., hydra.run.dir=..."
    )


def lock_of_experiment(root: Path) -> Lock:
    """Return the lock of an experiment's directory."""
    return ExperimentLock(root, root)


def check_at_rest(root: Path) -> None:
    """Check that nobody trains in an experiment's directory.

    Raises:
        ConfigError: naming who does.
    """
    # An experiment of a version before this one has only its control directory locked.
    owner = living_owner(root) or living_owner(root / "control")
    if owner is not None:
        raise ConfigError(ExperimentLock.refusal.format(directory=shown(root), owner=owner))


def read_owner(directory: Path) -> Owner | None:
    """Return what the lock file says, whether its writer lives or not."""
    try:
        return Owner(**json.loads((directory / LOCK_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def living_owner(directory: Path) -> Owner | None:
    """Return the owner of a control directory if an experiment holds it now."""
    with _opened(directory / LOCK_NAME) as file:
        if file is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read_owner(directory) or Owner(0, "unknown", str(directory.parent))
        except OSError:
            owner = read_owner(directory)
            return owner if _is_alive(owner) else None
        return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def _is_alive(owner: Owner | None) -> bool:
    if owner is None:
        return False
    if owner.host != socket.gethostname() or owner.pid == os.getpid():
        return True  # on another host there is no telling; this process holds it through another lock
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
