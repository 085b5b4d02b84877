"""One quota of a server, shared by all runs that ask it: kept to by waiting before anything is sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from rfflow.config.spec import LimitSpec
from rfflow.errors import ConfigError

_BURST = 1.0
"""Seconds' worth that may go at once: a server that counts by the minute sees no more than that too much."""
_HEADROOM = 0.98
"""The part of a limit that is used; clocks differ."""
_SLOWED, _RECOVERS = 0.9, 0.005
"""By how much a refusal slows everybody, and how much of the full rate comes back a second."""


class BudgetSpent(Exception):
    """There is no money for another request: nothing was sent, and whoever wanted to may go on when there is."""


@dataclass
class Leave:
    """A request that may be sent."""

    paid: float
    """What it has cost, in USD: what it may cost at most, until somebody knows better."""
    given: float = 0.0
    """When, by the clock of the loop."""
    is_refused: bool = False
    """Whether the server has had too much."""


@dataclass
class _Waiting:
    tokens: int
    usd: float
    granted: asyncio.Future[None]


class Limiter:
    """Gives leave to send; of those who wait, to whoever has had the fewest tokens.

    What a request may take at most is reserved before it is sent, and not given back: servers charge the reservation.
    Money is: what is on its way counts with the most that it may cost, what is back with what it did. By the generic
    cell rate algorithm each request moves the time at which the next may go. It belongs to one event loop.

    Args:
        limit: what the server allows.
        name: the key under ``limits``, for messages.
        spent: USD that were spent before.
    """

    def __init__(self, limit: LimitSpec = LimitSpec(), name: str = "", spent: float = 0.0):  # noqa: B008  # frozen
        self.limit = limit
        self.name = name
        self.spent = spent
        self._requests = self._tokens = -1e18
        """When the quota would be as if nothing had been sent."""
        self._until = self._slowed_at = self._halved_at = -1e18
        self._rate = 1.0
        """The part of the limits that the server seems to give."""
        self._room = math.inf
        """How many may be on their way as far as the server seems to bear it, where no rate is said."""
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        self._taken: dict[Hashable, float] = {}
        """Tokens, by who has had them; who comes late begins with as many as who was served last."""
        self._level = 0.0
        self._on_way = 0
        self._reserved = 0.0
        """USD that what is on its way may cost."""
        self._timer: asyncio.TimerHandle | None = None

    def check(self, tokens: int, usd: float = 0.0) -> None:
        """Refuse a request that alone is more than there is.

        Raises:
            ConfigError: with the figures.
        """
        limit = self.limit
        if limit.tpm is not None and tokens > limit.tpm:
            raise ConfigError(
                f"A request may take {tokens} tokens (its prompt and the longest answer), and limits.{self.name}.tpm "
                f"is {limit.tpm:g}: it could never be sent. A shorter prompt or generator.max_tokens takes less."
            )
        if limit.usd is not None and usd > limit.usd:
            raise ConfigError(
                f"A request may cost {usd:.2g} USD (its prompt and the longest answer), and limits.{self.name}.usd is "
                f"{limit.usd:g}: it could never be sent."
            )

    @asynccontextmanager
    async def leave(self, who: Hashable, tokens: int, usd: float = 0.0) -> AsyncIterator[Leave]:
        """Wait until a request may be sent, and send it inside.

        Args:
            who: the candidate for which it is.
            tokens: that it takes at most.
            usd: that it costs at most.

        Raises:
            BudgetSpent: if it could cost more than is left.
        """
        await self._wait(who, _Waiting(tokens, usd, asyncio.get_running_loop().create_future()))
        leave = Leave(usd, asyncio.get_running_loop().time())
        try:
            yield leave
        finally:
            self._on_way -= 1
            self._reserved -= usd
            self.spent += leave.paid
            if not leave.is_refused:
                self._room += 1 / self._room
            self._serve()

    def refused(self, seconds: float, leave: Leave | None = None) -> None:
        """The server has had too much: nobody sends for so long, and everybody a little slower after that.

        Where no rate is said, half as many are on their way after that, and again more as answers come.

        Args:
            seconds: how long.
            leave: of the request that was refused, where that is known.
        """
        now = asyncio.get_running_loop().time()
        if leave is not None:
            leave.is_refused = True
        is_news = leave is None or leave.given >= self._halved_at  # many that were on their way are refused together
        if is_news and self.limit.rpm is None and self.limit.tpm is None:
            self._room, self._halved_at = max(1.0, min(self._room, self._on_way) / 2), now
        self._until = max(self._until, now + seconds)
        self._requests = max(self._requests, self._until + _BURST)
        self._tokens = max(self._tokens, self._until + _BURST)
        if now - self._slowed_at > 1:  # many that were on their way are refused together
            self._rate, self._slowed_at = max(0.1, self._rate_at(now) * _SLOWED), now

    # --- who is next --------------------------------------------------------------------------------------------------

    async def _wait(self, who: Hashable, waiting: _Waiting) -> None:
        if who not in self._queues:
            self._queues[who] = deque()
            self._taken[who] = max(self._taken.get(who, 0.0), self._level)
        self._queues[who].append(waiting)
        self._serve()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():  # it had leave, and will not use it
                self._on_way -= 1
                self._reserved -= waiting.usd
            self._serve()
            raise

    def _serve(self) -> None:
        """Give leave to all who may have it now, and look again when the next may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while (who := self._next()) is not None:
            waiting = self._queues[who][0]
            if self._on_way >= min(self._room, self.limit.concurrency or math.inf):
                return
            if self.limit.usd is not None and self.spent + self._reserved + waiting.usd > self.limit.usd:
                if not self._on_way:  # else it may turn out cheaper than it might have been
                    self._refuse_all()
                return
            start = max(self._until, self._requests - _BURST, self._tokens - _BURST)
            if start > loop.time():
                self._timer = loop.call_at(start, self._serve)
                return
            self._grant(who, loop.time())

    def _next(self) -> Hashable | None:
        for who in list(self._queues):
            queue = self._queues[who]
            while queue and queue[0].granted.done():  # cancelled
                queue.popleft()
            if not queue:
                del self._queues[who]
        return min(self._queues, key=lambda who: self._taken[who], default=None)

    def _grant(self, who: Hashable, now: float) -> None:
        waiting = self._queues[who].popleft()
        self._level = self._taken[who]
        self._taken[who] += max(1, waiting.tokens)
        rate = _HEADROOM * self._rate_at(now) / 60
        if self.limit.rpm is not None:
            self._requests = max(now, self._requests) + 1 / (self.limit.rpm * rate)
        if self.limit.tpm is not None:
            self._tokens = max(now, self._tokens) + waiting.tokens / (self.limit.tpm * rate)
        self._on_way += 1
        self._reserved += waiting.usd
        waiting.granted.set_result(None)

    def _refuse_all(self) -> None:
        said = f"limits.{self.name}.usd is {self.limit.usd:g}, of which {self.spent:.4g} are spent"
        for queue in self._queues.values():
            for waiting in queue:
                if not waiting.granted.done():
                    waiting.granted.set_exception(BudgetSpent(said))
        self._queues.clear()

    def _rate_at(self, now: float) -> float:
        return min(1.0, self._rate + _RECOVERS * max(0.0, now - self._slowed_at))


def retry_after(headers: object, attempt: int) -> float:
    """Return the seconds that a server asks to wait, or else twice as many as the last time."""
    get = getattr(headers, "get", lambda name: None)
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if (said := get(name)) is None:
            continue
        try:
            seconds = float(said) / unit
        except ValueError:
            seconds = _until(str(said))
        if 0 <= seconds <= 3600:
            return seconds
    return float(min(60.0, 0.5 * 2**attempt))


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return -1.0
