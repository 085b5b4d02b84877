"""What an experiment's directory says, as plain values; a file is read again only where it has changed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rfflow.confidential import redacted
from rfflow.control.ownership import living_owner
from rfflow.runs.paths import ExperimentPaths

DEPTH = 4
"""How far below a logdir experiments are looked for."""
_Stamp = tuple[int, int, int]


def find(logdir: str) -> dict[str, Path]:
    """Return the experiments of a logdir by name: it may be one, above some, or the ``tb/`` (or a run's) of one."""
    root = Path(os.path.abspath(os.path.expanduser(logdir)))
    for up in (root, *root.parents[:2]):
        if _is_experiment(up) and (up == root or (up / "tb") in (root, root.parent)):
            return {up.name: up}
    found: dict[str, Path] = {}
    level = [root]
    for _ in range(DEPTH):
        level = [child for folder in level for child in _folders(folder)]
        found |= {child.relative_to(root).as_posix(): child for child in level if _is_experiment(child)}
        level = [child for child in level if child not in found.values()]
    return found


def _is_experiment(folder: Path) -> bool:
    return (folder / "experiment.json").is_file() or (folder / "control" / "status.json").is_file()


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Cached:
    """A file's parsed content, kept as long as the file stays the same."""

    def __init__(self, path: Path, parse: Callable[[str], Any]):
        self.path = path
        self._parse = parse
        self._seen: _Stamp | None = None
        self._value: Any = None

    def get(self) -> Any:
        """Return the content; None where there is no file, what was last read where it cannot be read."""
        stamp = _stamp(self.path)
        if stamp is None:
            self._seen, self._value = None, None
        elif stamp != self._seen:
            with contextlib.suppress(OSError, ValueError):  # the next look tries again
                self._value, self._seen = self._parse(self.path.read_text(encoding="utf-8")), stamp
        return self._value


class Lines:
    """A growing file of JSON lines, read from where the last look ended."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def new(self) -> list[dict[str, Any]]:
        """Return the lines that have come since; one without its end waits for it, one that is no JSON is left out."""
        stamp = _stamp(self._path)
        if stamp is None or stamp[:2] == (self._inode, self._offset):
            return []
        if stamp[0] != self._inode or stamp[1] < self._offset:
            self._offset = 0
        self._inode = stamp[0]
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found += [value] if isinstance(value, dict) else []
        return found


class Experiment:
    """One experiment's files."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = ExperimentPaths(root)
        self._status = Cached(self.paths.control / "status.json", json.loads)
        self._timeline = Cached(self.paths.timeline, json.loads)
        self._journal = Lines(self.paths.ops)
        self._ops: list[dict[str, Any]] = []
        self._logs: dict[int, Lines] = {}
        self._points: list[list[Any]] = []

    @property
    def is_alive(self) -> bool:
        """Whether a process trains here now."""
        return living_owner(self.root) is not None

    def version(self) -> str:
        """Return what changes when :meth:`state` does."""
        files = (self._status.path, self._timeline.path, self.paths.ops)
        return f"{[_stamp(path) for path in files]}{self.is_alive}"

    def state(self) -> dict[str, Any]:
        """Return the runs as they stand, the ops and the timeline (``[run, chunk, started, ended, slot]``)."""
        status = self._status.get() or {}
        self._ops += [{**op, "detail": redacted(str(op.get("detail", "")))} for op in self._journal.new()]
        chunks = (self._timeline.get() or {}).get("chunks", [])
        return {
            "experiment": str(self.root),
            "alive": self.is_alive,
            "waiting": bool(status.get("waiting")),
            "updated": status.get("updated"),
            "runs": status.get("runs") or [],
            "ops": self._ops,
            "timeline": [[c["run"], c["chunk"], c["started"], c["ended"], c.get("slot", 0)] for c in chunks],
        }

    def points(self, since: int) -> dict[str, Any]:
        """Return the points ``[run, step, chunk, seconds, metrics]`` that came after a cursor, and the new cursor."""
        for number in self._numbers():
            lines = self._logs.setdefault(number, Lines(self.paths.run(number).metrics))
            for line in lines.new():
                metrics = {k: v for k, v in (line.get("metrics") or {}).items() if isinstance(v, int | float)}
                self._points.append([number, line.get("step"), line.get("chunk"), line.get("time"), metrics])
        return {"points": self._points[max(since, 0) :], "cursor": len(self._points)}

    def _numbers(self) -> list[int]:
        return [run["number"] for run in (self._status.get() or {}).get("runs") or []]

    def log_tail(self, run: int, size: int = 20_000) -> str:
        """Return the end of a run's ``run.log``, ``size`` bytes at most; empty where there is none.

        Raises:
            KeyError: if there is no run of that number.
        """
        if run not in self._numbers():
            raise KeyError(run)
        try:
            with self.paths.run(run).log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return redacted(file.read().decode("utf-8", "replace"))
        except OSError:
            return ""
