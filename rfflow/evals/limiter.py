"""One quota of a server: requests and tokens a minute, kept to by waiting before anything is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from rfflow.errors import ConfigError

_BURST = 1.0
"""Seconds' worth that may go at once: a server that counts by the minute sees no more than that too much."""
_HEADROOM = 0.98
"""The part of a limit that is used; clocks differ."""
_SLOWED, _RECOVERS = 0.9, 0.005
"""By how much a refusal slows everybody, and how much of the full rate comes back a second."""


class Limiter:
    """Gives leave to send, in the order in which it was asked for.

    What a request may cost at most is reserved before it is sent, and not given back: servers charge the reservation.
    By the generic cell rate algorithm: each request moves the time at which the next may go, so nothing has to wake
    anybody, and no loop is kept.

    Args:
        rpm: requests a minute; ``None`` is no limit.
        tpm: tokens a minute, those of the prompt and the longest answer together.
        clock: tells the seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._rpm, self._tpm = rpm, tpm
        self._clock, self._sleep = clock, sleep
        self._requests = self._tokens = -1e18
        """When the quota would be as if nothing had been sent."""
        self._until = self._slowed_at = -1e18
        self._refusals = 0
        self._rate = 1.0
        """The part of the limits that the server seems to give."""

    def check(self, tokens: int) -> None:
        """Refuse a request that alone is more than a minute has.

        Raises:
            ConfigError: with the figures.
        """
        if self._tpm is not None and tokens > self._tpm:
            raise ConfigError(
                f"A request may take {tokens} tokens (its prompt and the longest answer), and generator.tpm is "
                f"{self._tpm:g}: it could never be sent. A shorter prompt or generator.max_tokens takes less."
            )

    async def acquire(self, tokens: int) -> None:
        """Return when a request of at most so many tokens may be sent."""
        while True:
            refusals, start = self._refusals, self._reserve(tokens)
            if (wait := start - self._clock()) > 0:
                await self._sleep(wait)
            if refusals == self._refusals:
                return

    def _reserve(self, tokens: int) -> float:
        """Take the next place, and return when it is."""
        now = self._clock()
        start = max(now, self._requests - _BURST, self._tokens - _BURST)
        rate = _HEADROOM * self._rate_at(now) / 60
        if self._rpm is not None:
            self._requests = max(start, self._requests) + 1 / (self._rpm * rate)
        if self._tpm is not None:
            self._tokens = max(start, self._tokens) + tokens / (self._tpm * rate)
        return start

    async def wait(self, seconds: float) -> None:
        """Wait, whatever the quota."""
        await self._sleep(seconds)

    def refused(self, seconds: float) -> None:
        """The server has had too much: nobody sends for so long, and everybody a little slower after that."""
        now = self._clock()
        self._refusals += 1  # whoever waits asks anew: all at once would be refused again
        until = max(self._until, now + seconds)
        if until > self._until:
            self._until = until
            self._requests = self._tokens = until + _BURST
        if now - self._slowed_at > 1:  # many that were on their way are refused together
            self._rate, self._slowed_at = max(0.1, self._rate_at(now) * _SLOWED), now

    def _rate_at(self, now: float) -> float:
        return min(1.0, self._rate + _RECOVERS * max(0.0, now - self._slowed_at))


def retry_after(headers: object, attempt: int) -> float:
    """Return the seconds that a server asks to wait, or else twice as many as the last time."""
    get = getattr(headers, "get", lambda name: None)
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(str(get(name))) / unit
        except ValueError:  # not there, or a date
            continue
        if 0 <= seconds <= 3600:
            return seconds
    return float(min(60.0, 0.5 * 2**attempt))
