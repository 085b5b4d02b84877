"""The limiter against a server that counts, in a time that only passes when everybody waits."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.evals.limiter import Limiter, retry_after


class Time:
    """Virtual seconds: the next of those who sleep wakes when nobody has anything else to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(0.0, seconds), self._count, woken))
        await woken

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(20):  # whoever can go on does
                await asyncio.sleep(0)
            if not task.done():
                assert self._sleepers, "everybody waits, and nobody for the time"
                self.now, _, woken = heapq.heappop(self._sleepers)
                woken.set_result(None)
        return task.result()


class Server:
    """Counts what came in the last minute, by the reserved tokens, and refuses what is too much."""

    def __init__(self, time: Time, rpm: int, tpm: int):
        self.time, self.rpm, self.tpm = time, rpm, tpm
        self.taken: list[tuple[float, int]] = []
        self.refused = 0

    async def ask(self, tokens: int) -> float | None:
        """Return None for an answer, or the seconds to wait."""
        self.taken = [(at, n) for at, n in self.taken if at > self.time.now - 60]
        if len(self.taken) >= self.rpm or sum(n for _, n in self.taken) + tokens > self.tpm:
            self.refused += 1
            return self.taken[0][0] + 60 - self.time.now
        self.taken.append((self.time.now, tokens))
        await self.time.sleep(1.0)
        return None


async def ask_all(limiter: Limiter, server: Server, requests: list[int]) -> None:
    places = asyncio.Semaphore(32)

    async def one(tokens: int) -> None:
        async with places:
            while True:
                await limiter.acquire(tokens)
                wait = await server.ask(tokens)
                if wait is None:
                    return
                limiter.refused(wait)

    await asyncio.gather(*map(one, requests))


def outcome(requests: list[int], rpm: int, tpm: int, believed: dict[str, int]) -> tuple[float, int]:
    """Return the minutes it took, and how many requests were refused."""
    time = Time()
    server = Server(time, rpm, tpm)
    limiter = Limiter(believed.get("rpm"), believed.get("tpm"), clock=time.clock, sleep=time.sleep)
    asyncio.run(time.run(ask_all(limiter, server, requests)))
    return time.now / 60, server.refused


def test_requests_keep_to_the_limit_and_use_it() -> None:
    minutes, refused = outcome([10] * 500, 100, 10**9, {"rpm": 100})
    assert refused == 0
    assert 5 <= minutes < 5.3


def test_tokens_keep_to_the_limit_whatever_the_size() -> None:
    requests = [100, 900] * 100
    minutes, refused = outcome(requests, 10**9, 20_000, {"tpm": 20_000})
    assert refused == 0
    assert 5 <= minutes < 5.4


def test_a_limit_that_is_not_known_is_found_and_nobody_is_lost() -> None:
    """It is set a third too high: some are refused, all are answered, in not much more time than it takes."""
    minutes, refused = outcome([10] * 500, 100, 10**9, {"rpm": 133})
    assert 0 < refused < 100
    assert minutes < 7.5


def test_one_that_could_never_be_sent_is_refused_at_once() -> None:
    Limiter(tpm=1000).check(1000)
    with pytest.raises(ConfigError, match=r"A request may take 1001 tokens .* and generator\.tpm is 1000"):
        Limiter(tpm=1000).check(1001)


def test_the_server_says_how_long_to_wait() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, 1) == 1.5
    assert retry_after({"retry-after": "9"}, 1) == 9
    assert retry_after({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 3) == 4
    assert retry_after({}, 99) == 60
