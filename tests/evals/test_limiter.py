"""The limiter against a server that counts, in a time that only passes when everybody waits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from email.utils import formatdate

import pytest

from benchmarks.limits import Server as Bucket
from benchmarks.limits import play
from rfflow.config.spec import LimitSpec
from rfflow.errors import ConfigError
from rfflow.evals.limiter import BudgetSpent, Limiter, retry_after
from tests.support.virtual_time import run


class Server:
    """Counts what came in the last minute, by the reserved tokens, and refuses what is too much."""

    def __init__(self, rpm: float = 1e9, tpm: float = 1e9, window: float = 60):
        self.rpm, self.tpm, self.window = rpm, tpm, window
        self.taken: list[tuple[float, int]] = []
        self.refused = self.on_way = self.most_on_way = 0

    async def ask(self, tokens: int) -> float | None:
        """Return None for an answer, or the seconds to wait."""
        now, share = asyncio.get_running_loop().time(), self.window / 60
        self.taken = [(at, n) for at, n in self.taken if at > now - self.window]
        if len(self.taken) >= self.rpm * share or sum(n for _, n in self.taken) + tokens > self.tpm * share:
            self.refused += 1
            return self.taken[0][0] + self.window - now
        self.taken.append((now, tokens))
        self.on_way += 1
        self.most_on_way = max(self.most_on_way, self.on_way)
        await asyncio.sleep(1.0)
        self.on_way -= 1
        return None


async def ask_all(limiter: Limiter, server: Server, requests: list[int]) -> None:
    places = asyncio.Semaphore(32)

    async def one(tokens: int) -> None:
        async with places:
            while True:
                async with limiter.leave("run", tokens) as leave:
                    if (wait := await server.ask(tokens)) is None:
                        return
                    limiter.refused(wait, leave)

    await asyncio.gather(*map(one, requests))


def minutes(server: Server, requests: list[int], **limit: float) -> float:
    _, seconds = run(ask_all(Limiter(LimitSpec(**limit)), server, requests))  # type: ignore[arg-type]
    return seconds / 60


def test_requests_keep_to_the_limit_and_use_it() -> None:
    server = Server(rpm=100)
    assert 5 <= minutes(server, [10] * 500, rpm=100) < 5.3
    assert server.refused == 0


def test_tokens_keep_to_the_limit_whatever_the_size() -> None:
    server = Server(tpm=20_000)
    assert 5 <= minutes(server, [100, 900] * 100, tpm=20_000) < 5.4
    assert server.refused == 0


def test_no_more_are_on_their_way_than_may_be() -> None:
    server = Server()
    assert minutes(server, [10] * 120, concurrency=4) == pytest.approx(0.5)
    assert server.most_on_way == 4


def test_a_limit_that_is_not_known_is_found_and_nobody_is_lost() -> None:
    """It is set a third too high: some are refused, all are answered, in not much more time than it takes."""
    server = Server(rpm=100)
    assert minutes(server, [10] * 500, rpm=133) < 7.5
    assert 0 < server.refused < 100


def test_where_no_limit_is_said_fewer_are_on_their_way_until_the_server_bears_it() -> None:
    """A server that has room for one request more tells all who wait to come back for it."""
    played = play(Bucket(rpm=500), LimitSpec())
    assert played.lost == 0 and played.use > 0.9
    assert 0 < played.server.seen["wasted"] < 200, "all come back at once, again and again"


def test_who_has_more_on_its_way_and_longer_prompts_gets_no_more() -> None:
    limiter, sent = Limiter(LimitSpec(tpm=6000)), Counter[str]()

    async def ask(who: str, tokens: int) -> None:
        while True:
            async with limiter.leave(who, tokens):
                sent[who] += tokens
                await asyncio.sleep(1.0)

    async def go() -> None:
        asked = [ask("many", 10) for _ in range(64)] + [ask("few", 10) for _ in range(8)]
        tasks = [asyncio.ensure_future(each) for each in [*asked, *(ask("long", 200) for _ in range(4))]]
        await asyncio.sleep(600)
        late = asyncio.ensure_future(ask("late", 200))
        await asyncio.sleep(600)
        for task in (*tasks, late):
            task.cancel()
        await asyncio.gather(*tasks, late, return_exceptions=True)

    run(go())
    assert sum(sent.values()) == pytest.approx(0.98 * 6000 * 20, rel=0.02)
    assert max(sent[who] for who in ("many", "few", "long")) < 1.05 * min(sent[who] for who in ("many", "few", "long"))
    assert sent["late"] == pytest.approx(0.98 * 6000 * 10 / 4, rel=0.05), "who comes late makes up for nothing"


def test_who_gives_up_keeps_nobody_from_going_on() -> None:
    limiter = Limiter(LimitSpec(concurrency=1))

    async def go() -> None:
        async with limiter.leave("first", 1):
            lost = asyncio.ensure_future(limiter.leave("lost", 1).__aenter__())
            last = asyncio.ensure_future(limiter.leave("last", 1).__aenter__())
            await asyncio.sleep(1)
            lost.cancel()
        await last

    run(go())


def test_money_is_never_overdrawn_and_what_was_not_spent_is_there_again() -> None:
    """Each may cost 1 and costs a quarter: of 10 there is enough for 37 or more, and never for more than 40."""
    limiter, paid = Limiter(LimitSpec(usd=10), "mine", spent=0.0), Counter[str]()

    async def one() -> None:
        async with limiter.leave("run", 1, 1.0) as leave:
            assert limiter.spent + limiter._reserved <= 10
            await asyncio.sleep(1.0)
            leave.paid = 0.25
        paid["answers"] += 1

    async def go() -> list[BaseException | None]:
        return await asyncio.gather(*(one() for _ in range(60)), return_exceptions=True)

    found, _ = run(go())
    assert 37 <= paid["answers"] <= 40
    errors = [error for error in found if error is not None]
    assert len(errors) == 60 - paid["answers"] and all(isinstance(error, BudgetSpent) for error in errors)
    assert str(errors[0]) == f"limits.mine.usd is 10, of which {limiter.spent:.4g} are spent"


def test_one_that_could_never_be_sent_is_refused_at_once() -> None:
    limiter = Limiter(LimitSpec(tpm=1000, usd=0.5), "small")
    limiter.check(1000, 0.5)
    with pytest.raises(ConfigError, match=r"A request may take 1001 tokens .* and limits\.small\.tpm is 1000"):
        limiter.check(1001)
    with pytest.raises(ConfigError, match=r"A request may cost 0\.6 USD .* and limits\.small\.usd is 0\.5"):
        limiter.check(10, 0.6)


def test_the_server_says_how_long_to_wait() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, 1) == 1.5
    assert retry_after({"retry-after": "9"}, 1) == 9
    assert 20 < retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}, 1) <= 30
    assert retry_after({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 3) == 4
    assert retry_after({"retry-after": "soon"}, 3) == 4
    assert retry_after({}, 99) == 60
