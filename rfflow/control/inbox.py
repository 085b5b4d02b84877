"""The control directory: op files go in, and every one of them ends in ``done/`` or in ``rejected/``.

People write here with editors, shells and network mounts, so nothing about a file is taken on trust: it may be half
written, huge, a directory, unreadable, or gone a moment later.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from rfflow.control.belonging import check_ours, held
from rfflow.control.documents import MAX_BYTES, parse_documents
from rfflow.control.filing import joined, maker_of, place_for, printable, write_note, write_whole
from rfflow.control.items import DONE, KINDS, REJECTED, Identity, Item, is_misnamed, is_op_file
from rfflow.control.ownership import LOCK_NAME, Lock
from rfflow.control.watching import Watch
from rfflow.errors import ConfigError, OpError, RfflowError

log = logging.getLogger(__name__)


@dataclass
class _Verdict:
    """Where an answered item goes and what is written beside it."""

    item: Item
    folder: str
    note_suffix: str
    note: str
    target: str | None = None
    """The name it gets there, once the note is written."""


_SHORTEST_WAIT = 0.02
"""Seconds; a file that never settles must not make waiting a busy loop."""
_LONGEST_WAIT = 5.0
"""Seconds without a look: an event may be lost, on a network mount or while the watch was just beginning."""
_HELD_BACK = 0.6
"""Seconds for which events may come late: of a file that was moved out, as an answered op is, watchdog waits half a
second for where it has gone, and holds back whatever happened since."""
_OFTEN = 0.03
"""Seconds between two looks meanwhile."""

_Key = tuple[str, Identity]


class Inbox:
    """The watched directory of one experiment.

    :meth:`scan` returns what is new, in the byte order of the file names (so ``10-x`` comes before ``9-x``: pad with
    zeros); each item is to be answered once with :meth:`done` or :meth:`reject`. Until then, and also where moving the
    file fails, the same file is not returned again, unless it is handed back with :meth:`put_back`.

    A file is taken at the first look if it was renamed or linked into place after it was written, or has been left
    alone for ``settle`` seconds. One that is younger may still be growing and is left for the next look.
    """

    def __init__(
        self,
        directory: Path | str,
        experiment: Path | str = "",
        *,
        settle: float = 0.25,
        polling: bool = False,
        clock: Callable[[], float] = time.time,
    ):
        self.directory = Path(os.path.abspath(directory))
        self._settle = settle
        self._clock = clock
        self._taken: set[_Key] = set()
        """Returned by :meth:`scan` and not answered yet."""
        self._unmoved: dict[_Key, _Verdict] = {}
        """Answered, but still in their place because moving them failed."""
        self._looks: dict[_Key, float] = {}
        """When a file that may still be growing was first seen in this state."""
        self._trouble: str | None = None
        self._watch = Watch(self.directory, lambda name: is_op_file(name) or name == LOCK_NAME, polling)
        self._lock = Lock(self.directory, experiment)
        try:
            self._make_directories()
        except OSError as error:
            raise ConfigError(
                f"The control directory {self.directory} cannot be used: {error}. It and its {DONE}/ and {REJECTED}/ "
                "must be directories and no links, and those two your own. Give another: control.dir=..."
            ) from error
        self._lock.acquire()

    def scan(self) -> list[Item]:
        """Return the op files that have come since the last look, in the order of their names. Never raises."""
        items = []
        seen: set[_Key] = set()
        for key, status in self._files():
            seen.add(key)
            item = self._look_at(key, status)
            if item is not None:
                self._taken.add(key)
                items.append(item)
        self._looks = {key: at for key, at in self._looks.items() if key in seen and key not in self._taken}
        self._unmoved = {key: verdict for key, verdict in self._unmoved.items() if key in seen}
        return items

    def peek(self, known: Container[Identity] = ()) -> list[Item]:
        """Return what :meth:`scan` would, and leave it there to be scanned; of the known ones nothing is read."""
        new = [(key, status) for key, status in self._files() if key[1] not in known]
        return [item for key, status in new if (item := self._look_at(key, status)) is not None]

    def put_back(self, item: Item) -> None:
        """Leave an item for the next :meth:`scan`, because it cannot be answered yet."""
        self._taken.remove((item.name, item.identity))

    @property
    def has_young_files(self) -> bool:
        """Whether the last look left a file for the next one, because it may still have been growing."""
        return bool(self._looks)

    def has_news(self) -> bool:
        """Whether there is a file that the last look did not see, or left for the next one."""
        known = {name for name, _ in (*self._taken, *self._unmoved, *self._looks)}
        return not known.issuperset(self._names())

    def done(self, item: Item, outcome: str) -> Path:
        """File the item under ``done/``, with the outcome beside it as ``<name>.outcome``; return where it lies."""
        return self._answer(item, DONE, ".outcome", outcome)

    def reject(self, item: Item, reason: str) -> Path:
        """File the item under ``rejected/``, with the reason beside it as ``<name>.error``; return where it lies."""
        maker = maker_of(item.name)
        log.warning("Refused %s: %s", f"an op of {maker}" if maker else printable(item.name), reason)
        return self._answer(item, REJECTED, ".error", reason)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there may be something to scan; return False where only the timeout (seconds) has passed."""
        if self._watch.start() and self.has_news():
            return True
        if not self._looks:
            return self._wait_for_news(timeout)
        soonest = max(_SHORTEST_WAIT, min(self._looks.values()) + self._settle - self._clock())
        if timeout is not None and timeout < soonest:
            return self._watch.wait(timeout)
        self._watch.wait(soonest)
        return True

    def wake(self) -> None:
        """End :meth:`wait` from another thread."""
        self._watch.wake()

    def close(self) -> None:
        """Stop watching and give the directory back."""
        self._watch.stop()
        self._lock.release()

    # --- looking ------------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        if not self._lock.is_intact() and not self._recreate():
            return []
        try:
            with os.scandir(self.directory) as entries:
                names = [entry.name for entry in entries if is_op_file(entry.name)]
        except OSError as error:
            self._complain(f"The control directory {self.directory} cannot be read, so no op is seen: {error}")
            return []
        if self._trouble is not None:
            log.info("The control directory %s can be used again.", self.directory)
            self._trouble = None
        return sorted(names, key=os.fsencode)

    def _files(self) -> Iterator[tuple[_Key, os.stat_result]]:
        for name in self._names():
            try:
                status = os.stat(self.directory / name, follow_symlinks=False)
            except OSError:
                continue  # it vanished
            yield (name, Identity.of(status)), status

    def _look_at(self, key: _Key, status: os.stat_result) -> Item | None:
        """Return the file as an item; None while it is in hand, still being written, or gone."""
        name, identity = key
        if key in self._taken:
            return None
        if key in self._unmoved:
            self._file_away(self._unmoved[key])
            return None
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "no ordinary file")
            return Item(name, identity, error=OpError(f"It is {kind}. Allowed: an ordinary file of YAML."))
        if is_misnamed(name):
            error = OpError(f"It is called {printable(name)}. Op files end in .yaml: call it {printable(name[:-4])}.")
            return Item(name, identity, error=error) if self._is_settled(key, status) else None
        if identity.size > MAX_BYTES:
            return Item(name, identity, error=OpError(f"It holds {identity.size} bytes. Allowed: up to {MAX_BYTES}."))
        is_settled = self._is_settled(key, status)
        was_put_in_place = status.st_ctime_ns != status.st_mtime_ns
        if not (is_settled or was_put_in_place):
            return None
        item = self._read(name, identity)
        # A program may touch a file's owner or mode before it writes: only a settled file is wrong for good.
        return item if item is None or item.error is None or is_settled else None

    def _is_settled(self, key: _Key, status: os.stat_result) -> bool:
        now = self._clock()
        first_seen = self._looks.setdefault(key, now)
        # The second condition is for a file server whose clock is ahead of ours.
        return now - max(status.st_mtime, status.st_ctime) >= self._settle or now - first_seen >= self._settle

    def _read(self, name: str, identity: Identity) -> Item | None:
        try:
            # Not blocking: the file may have become a named pipe since we looked.
            file = os.open(self.directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Item(name, identity, error=OpError(f"It cannot be read: {error.strerror}."))
        try:
            if Identity.of(os.fstat(file)) != identity:
                return None
            content = b""
            while len(content) <= MAX_BYTES and (part := os.read(file, MAX_BYTES + 1 - len(content))):
                content += part
            if Identity.of(os.fstat(file)) != identity or len(content) != identity.size:
                return None
        except OSError as error:
            return Item(name, identity, error=OpError(f"It cannot be read: {error.strerror}."))
        finally:
            os.close(file)
        try:
            return Item(name, identity, parse_documents(content), content=content)
        except OpError as error:
            return Item(name, identity, error=error, content=content)

    def _wait_for_news(self, timeout: float | None) -> bool:
        begun = time.monotonic()
        until = math.inf if timeout is None else begun + timeout
        while True:
            now = time.monotonic()
            left, pause = max(0.0, until - now), _OFTEN if now - begun < _HELD_BACK else _LONGEST_WAIT
            if self._watch.wait(min(left, pause)) or self.has_news():
                return True
            if left <= pause:
                return False

    # --- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, item: Item, folder: str, note_suffix: str, note: str) -> Path:
        assert (item.name, item.identity) in self._taken, f"{item.name} is not waiting for an answer"
        self._taken.remove((item.name, item.identity))
        return self._file_away(_Verdict(item, folder, note_suffix, note))

    def _file_away(self, verdict: _Verdict) -> Path:
        """Move the file and write the note; where that fails, remember, so that the op cannot be applied again."""
        item = verdict.item
        key, source, folder = (item.name, item.identity), self.directory / item.name, self.directory / verdict.folder
        try:
            with self._held() as here:
                _make_folder(here, verdict.folder)
                with held(verdict.folder, inside=here) as filed:
                    check_ours(filed, str(folder))
                    self._file(verdict, here, filed)
        except OSError as error:
            if key not in self._unmoved:
                log.warning("Cannot move %s to %s/: %s.", printable(str(source)), verdict.folder, error)
            self._unmoved[key] = verdict
            return source
        self._unmoved.pop(key, None)
        assert verdict.target is not None
        return folder / verdict.target

    def _file(self, verdict: _Verdict, here: int, folder: int) -> None:
        """Do so between two open directories: what takes their place meanwhile is not looked at."""
        item = verdict.item
        if verdict.target is None:
            target = place_for(folder, item.name, verdict.note_suffix, verdict.note)
            # The note first: whoever sees the file in its new place finds the note too.
            write_note(folder, joined(target, verdict.note_suffix), verdict.note)
            verdict.target = target
        if self._is_still_there(item, here):
            os.rename(item.name, verdict.target, src_dir_fd=here, dst_dir_fd=folder)
        else:  # the file was removed or replaced after it was read; what was read is filed all the same
            write_whole(folder, verdict.target, item.content)

    def _is_still_there(self, item: Item, here: int) -> bool:
        try:
            there = Identity.of(os.stat(item.name, dir_fd=here, follow_symlinks=False))
        except FileNotFoundError:
            return False
        if not item.content:  # it was refused unread, so growing on does not make it another
            return (there.device, there.inode) == (item.identity.device, item.identity.inode)
        return there == item.identity

    # --- the directory itself -----------------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        with self._held() as here:
            for name in (DONE, REJECTED):
                _make_folder(here, name)
                with held(name, inside=here) as folder:
                    check_ours(folder, str(self.directory / name))

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        if not os.path.lexists(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        with held(self.directory) as here:
            yield here

    def _recreate(self) -> bool:
        """Make the directory again and take its lock; False where another experiment was quicker: it answers."""
        self._watch.stop()
        try:
            self._make_directories()
            self._lock.acquire()
        except (OSError, RfflowError) as error:
            self._complain(f"The control directory {self.directory} is gone and cannot be made again: {error}")
            return False
        log.warning("The control directory %s (or its lock) was deleted. It has been made again.", self.directory)
        return True

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.error("%s", trouble)
            self._trouble = trouble


def _make_folder(inside: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=inside)
