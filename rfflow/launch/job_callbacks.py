"""What Hydra's callbacks note of a job when it starts, kept until it ends.

Callbacks are written for jobs that come one after the other: where a job's directory or its clock goes into an
attribute in ``on_job_start``, it is still there in ``on_job_end``. Here every job starts before the first one ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

_ABSENT = object()


class JobNotes:
    """What one job's ``on_job_start`` changes of the callbacks.

    Only that: a list of results, or a counter that ``on_job_end`` keeps, goes on being one for all jobs.
    """

    def __init__(self, callbacks: Iterable[Any]):
        self._callbacks = list(callbacks)
        self._changed: list[tuple[_Holder, Any]] = []
        """What holds something of the job's, and what that is."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Note what changes inside."""
        before = {holder.key: (holder, holder.contents()) for holder in _holders(self._callbacks)}
        yield
        for holder in _holders(self._callbacks):
            _, contents = before.get(holder.key, (None, holder.empty()))
            if (own := holder.changes(contents, holder.contents())) is not None:
                self._changed.append((holder, own))

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Let the callbacks have what was noted; what they change meanwhile is added to what others have changed."""
        views = []
        for holder, own in self._changed:
            others = holder.contents()
            view = holder.with_changes(others, own)
            holder.fill(view)
            views.append((holder, others, view))
        try:
            yield
        finally:
            for holder, others, view in views:
                holder.fill(holder.merged(others, view, holder.contents()))


class _Holder:
    """A dictionary: the attributes of a callback, or a dictionary in one of them."""

    def __init__(self, held: Any):
        self._held = held  # which keeps its address from being another's
        self.key = id(held)

    def empty(self) -> Any:
        return {}

    def contents(self) -> Any:
        return dict(self._held)

    def fill(self, contents: Any) -> None:
        if not _same(dict(self._held).items(), contents.items()):
            self._held.clear()
            self._held.update(contents)

    def changes(self, before: Any, after: Any) -> Any | None:
        keys = [*before, *(key for key in after if key not in before)]
        changed = {
            key: after.get(key, _ABSENT) for key in keys if before.get(key, _ABSENT) is not after.get(key, _ABSENT)
        }
        return changed or None

    def with_changes(self, others: Any, own: Any) -> Any:
        return {key: value for key, value in {**others, **own}.items() if value is not _ABSENT}

    def merged(self, others: Any, view: Any, after: Any) -> Any:
        return self.with_changes(others, self.changes(view, after) or {})


class _Sequence(_Holder):
    """A list: it ends up with what the others have, less what was taken out here, and what was added here."""

    def empty(self) -> Any:
        return []

    def contents(self) -> Any:
        return list(self._held)

    def fill(self, contents: Any) -> None:
        if not _same(self._held, contents):
            self._held.clear()
            self._held.extend(contents)

    def changes(self, before: Any, after: Any) -> Any | None:
        return None if _same(before, after) else after

    def with_changes(self, others: Any, own: Any) -> Any:
        return own

    def merged(self, others: Any, view: Any, after: Any) -> Any:
        kept = next((n for n, pair in enumerate(zip(view, after, strict=False)) if pair[0] is not pair[1]), None)
        kept = min(len(view), len(after)) if kept is None else kept
        left = list(others)
        for item in view[kept:]:
            place = next((n for n in reversed(range(len(left))) if left[n] is item), None)
            if place is not None:
                del left[place]
        return left + after[kept:]


class _Set(_Holder):
    """A set; see :class:`_Sequence`."""

    def empty(self) -> Any:
        return set()

    def contents(self) -> Any:
        return set(self._held)

    def fill(self, contents: Any) -> None:
        self._held.clear()
        self._held.update(contents)

    def changes(self, before: Any, after: Any) -> Any | None:
        return None if before == after else after

    def with_changes(self, others: Any, own: Any) -> Any:
        return own

    def merged(self, others: Any, view: Any, after: Any) -> Any:
        return (others - (view - after)) | (after - view)


def _holders(callbacks: Iterable[Any]) -> Iterator[_Holder]:
    """Yield what callbacks keep their notes in: their attributes, and the plain collections there, at any depth."""
    seen: set[int] = set()
    waiting = [vars(callback) for callback in callbacks if hasattr(callback, "__dict__")]
    while waiting:
        held = waiting.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        holder = _Set if isinstance(held, set) else _Sequence if isinstance(held, list | deque) else _Holder
        yield holder(held)
        for value in list(held.values() if isinstance(held, dict) else held):
            if isinstance(value, dict | list | deque | set):
                waiting.append(value)
            elif isinstance(value, SimpleNamespace) or (is_dataclass(value) and hasattr(value, "__dict__")):
                waiting.append(vars(value))


def _same(first: Iterable[Any], second: Iterable[Any]) -> bool:
    """Whether both hold the very same things."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))
