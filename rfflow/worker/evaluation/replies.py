"""What answers questions: in batches, or one by one, several at a time where that is async."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rfflow.evals.limiter import BudgetSpent
from rfflow.evals.prompts import Messages
from rfflow.evals.questions import shortened
from rfflow.runs.forecast import Forecast

Asked = Any
"""What is given for an item: messages for a generator, a dict of the row for a pipeline."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str | None
    usage: Mapping[str, float] = field(default_factory=dict)
    """Tokens, by what they are called."""
    cost: float = 0.0
    latency: float = 0.0
    """Seconds."""
    found: tuple[str, ...] | None = None
    """The documents that a pipeline says it has used, best first."""
    error: str | None = None
    is_kept: bool = False
    """Whether it was answered in an earlier experiment, and nobody was asked now."""


class BatchGenerator(Protocol):
    """What a class under ``generator._target_`` may be; else it is something that is called with messages."""

    batch_size: int

    def generate(self, prompts: Sequence[Messages]) -> Sequence[Reply]:
        """Answer them all."""
        ...


Put = Callable[[int, Reply], None]
"""Takes the position of an item and what came of it, the moment it is there, from whatever thread."""


class Replies(Protocol):
    """Answers to what was begun."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether :meth:`next` waits for nobody else."""
        ...

    @property
    def paused(self) -> str | None:
        """Why nothing more is asked, although something is left: there is no money."""
        ...

    def begin(self, asked: Mapping[int, Asked], put: Put) -> None:
        """Take up these, by position."""
        ...

    def next(self) -> int:
        """Wait until some have been answered, and return how many; 0 when nothing is left, or there is hurry."""
        ...

    def hurry(self) -> None:
        """Begin nothing any more; what is on its way still arrives."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class Batches:
    """Answers by a generator that takes many at once."""

    is_idle = has_news = True  # a batch is answered before `next` returns
    paused = None

    def __init__(self, generator: BatchGenerator):
        self._generator = generator
        self._waiting: list[tuple[int, Asked]] = []
        self._put: Put = lambda position, reply: None

    def begin(self, asked: Mapping[int, Asked], put: Put) -> None:
        """Take up these."""
        self._waiting, self._put = list(asked.items()), put

    def next(self) -> int:
        """Answer the next batch."""
        size = self._generator.batch_size
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        replies = self._generator.generate([asked for _, asked in batch]) if batch else []
        for (position, _), reply in zip(batch, replies, strict=True):
            self._put(position, reply)
        return len(batch)

    def hurry(self) -> None:
        """A batch has no place to leave it."""

    def close(self) -> None:
        """Forget what waits."""
        self._waiting = []


class OneByOne:
    """Answers by a function that takes one."""

    is_idle = has_news = True
    paused = None

    def __init__(self, function: Callable[[Asked], Any]):
        self._function = function
        self._waiting: list[tuple[int, Asked]] = []
        self._put: Put = lambda position, reply: None
        self._is_hurried = False

    def begin(self, asked: Mapping[int, Asked], put: Put) -> None:
        """Take up these."""
        self._waiting, self._put, self._is_hurried = list(asked.items()), put, False

    def next(self) -> int:
        """Answer the next."""
        if not self._waiting or self._is_hurried:
            return 0
        position, asked = self._waiting.pop(0)
        self._put(position, _timed(self._function, asked))
        return 1

    def hurry(self) -> None:
        """Ask nothing any more."""
        self._is_hurried = True

    def close(self) -> None:
        """Forget what waits."""
        self._waiting = []


class Concurrent:
    """Answers by an async function, so many at a time, on the one loop that all runs of the process have.

    Args:
        function: takes what is asked.
        concurrency: how many at a time.
    """

    def __init__(self, function: Callable[[Asked], Coroutine[Any, Any, Any]], concurrency: int):
        self._function = function
        self._concurrency = concurrency
        self._waiting: list[tuple[int, Asked]] = []
        self._put: Put = lambda position, reply: None
        self._told: queue.Queue[bool | BaseException] = queue.Queue()
        """True for an answer, false for a task that has ended, and what it has ended by if that was an error."""
        self._tasks: set[concurrent.futures.Future[None]] = set()
        self._is_hurried = False
        self.paused: str | None = None
        self.ring: Callable[[], None] = lambda: None
        """Called whenever there may be news, from another thread."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._tasks

    @property
    def has_news(self) -> bool:
        """Whether an answer is there, or nothing is on its way."""
        with self._told.mutex:
            told = list(self._told.queue)
        return sum(each is False for each in told) == len(self._tasks) or any(each is not False for each in told)

    def begin(self, asked: Mapping[int, Asked], put: Put) -> None:
        """Take up these."""
        while self._tasks:  # all has been answered, and they have yet to say that they end
            self.next()
        self._waiting, self._put, self._is_hurried, self.paused = list(asked.items()), put, False, None
        for _ in range(min(self._concurrency, len(asked))):
            self._tasks.add(asyncio.run_coroutine_threadsafe(self._work(), answering_loop()))

    def next(self) -> int:
        """Wait for an answer, and take what is there besides."""
        count, ended = 0, 0
        while ended < len(self._tasks) and not (count and self._told.empty()):
            told = self._told.get()
            if isinstance(told, BaseException):
                raise told
            count += told
            ended += not told
        for _ in range(ended):
            self._tasks.pop()
        return count

    def hurry(self) -> None:
        """Ask nothing any more."""
        self._is_hurried = True

    def close(self) -> None:
        """End what is on its way."""
        self._is_hurried = True
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        if (close := getattr(self._function, "close", None)) is not None and inspect.iscoroutinefunction(close):
            asyncio.run_coroutine_threadsafe(close(), answering_loop())

    async def _work(self) -> None:
        end: bool | BaseException = False
        try:
            while self._waiting and not self._is_hurried:
                position, asked = self._waiting.pop(0)
                self._put(position, await _timed_async(self._function, asked))
                self._told.put(True)
                self.ring()
        except BudgetSpent as spent:
            self.paused, self._is_hurried = str(spent), True
        except BaseException as error:  # the disk is full, say
            end = error
        self._told.put(end)
        self.ring()


@functools.cache
def answering_loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which everything async is awaited; it has a thread of its own, for notebooks have theirs."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rfflow-answers", daemon=True).start()
    return loop


def calls(function: Callable[[Asked], Any], concurrency: int) -> Replies:
    """Return what calls a function: several at a time where it is async."""
    whole = getattr(function, "func", function)  # of a partial
    method = getattr(whole, "__call__", None)  # noqa: B004  # of an object that can be called
    if inspect.iscoroutinefunction(whole) or inspect.iscoroutinefunction(method):
        return Concurrent(function, concurrency)
    return OneByOne(function)


def forecast_of(generator: Any, prompts: Sequence[Messages]) -> Forecast:
    """Return what a generator says that prompts may take, by its ``forecast(prompts)``; nothing if it has none."""
    foresee = getattr(generator, "forecast", None)
    found = foresee(prompts) if callable(foresee) else None
    return found if isinstance(found, Forecast) else Forecast()


def _timed(function: Callable[[Asked], Any], asked: Asked) -> Reply:
    began = time.monotonic()
    try:
        returned = function(asked)
        return _reply(returned, time.monotonic() - began)
    except Exception as error:  # a user's own may raise anything: one item is missing then, and the run goes on
        return Reply(None, latency=time.monotonic() - began, error=f"{type(error).__name__}: {error}")


async def _timed_async(function: Callable[[Asked], Any], asked: Asked) -> Reply:
    began = time.monotonic()
    try:
        returned = await function(asked)
        return _reply(returned, time.monotonic() - began)
    except BudgetSpent:
        raise
    except Exception as error:
        return Reply(None, latency=time.monotonic() - began, error=f"{type(error).__name__}: {error}")


def _reply(returned: Any, seconds: float) -> Reply:
    if isinstance(returned, Reply):
        return returned
    if isinstance(returned, str):
        return Reply(returned, latency=seconds)
    if isinstance(returned, Mapping) and isinstance(returned.get("answer"), str):
        found = returned.get("found")
        return Reply(
            returned["answer"],
            usage=dict(returned.get("usage") or {}),
            cost=float(returned.get("cost") or 0.0),
            latency=seconds,
            found=None if found is None else tuple(map(str, found)),
        )
    said = f"{shortened(returned)} of type {type(returned).__name__}"
    return Reply(None, latency=seconds, error=f"returned {said}; allowed: text, or a dict with answer")
