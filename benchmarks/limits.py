"""What becomes of a server's quota: our limiter beside the retries of the official client, in virtual time.

    python benchmarks/limits.py          # seconds; prints the tables of the README

Eight candidates with 200 questions each, half of them with prompts four times as long, ask one server at a time, four
requests of each on their way. The server counts as providers do: a bucket that fills at the limit's rate and holds six
seconds of it; a request takes what its prompt and its longest answer may have, and is refused with `retry-after` where
that is not there. The client's retries are two, behind `retry-after` or 0.5 s, 1 s and so on less a random quarter.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfflow.config.spec import LimitSpec
from rfflow.evals.limiter import Limiter
from tests.support.virtual_time import run

CANDIDATES, QUESTIONS, PLACES = 8, 200, 4
ANSWER = 64
RETRIES = 2


def prompt_of(candidate: int) -> int:
    """Tokens of a prompt: those of the second half are long."""
    return 300 if candidate < CANDIDATES // 2 else 1200


@dataclass
class Server:
    """Counts requests and tokens; has latency, and fails now and then."""

    rpm: float = 1e9
    tpm: float = 1e9
    window: float = 6.0
    errors: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.requests, self.tokens, self.at = self.rpm * self.window / 60, self.tpm * self.window / 60, 0.0

    async def ask(self, tokens: int) -> tuple[int, float]:
        """Return the status, and the seconds to wait where it is 429."""
        now = asyncio.get_running_loop().time()
        most = self.window / 60
        self.requests = min(self.rpm * most, self.requests + (now - self.at) * self.rpm / 60)
        self.tokens = min(self.tpm * most, self.tokens + (now - self.at) * self.tpm / 60)
        self.at = now
        self.seen["sent"] += 1
        if self.requests < 1 or self.tokens < tokens:
            self.seen["wasted"] += 1
            return 429, max((1 - self.requests) * 60 / self.rpm, (tokens - self.tokens) * 60 / self.tpm, 0.02)
        self.requests, self.tokens = self.requests - 1, self.tokens - tokens
        await asyncio.sleep(0.4 + 1.2 * self.chance.random() ** 2)
        if self.chance.random() < self.errors:
            self.seen["wasted"] += 1
            return 500, 0.0
        self.seen["answered"] += 1
        self.seen["tokens"] += tokens
        return 200, 0.0


@dataclass
class Played:
    """What came of a scenario."""

    server: Server
    seconds: float = 0.0
    lost: int = 0
    done: dict[int, list[float]] = field(default_factory=dict)
    """When each candidate's answers came."""

    @property
    def use(self) -> float:
        """The part of the tighter limit that was used."""
        minutes = self.seconds / 60
        seen = self.server.seen
        return max(seen["answered"] / (self.server.rpm * minutes), seen["tokens"] / (self.server.tpm * minutes))

    def fairness(self, part: float) -> float:
        """The least over the most tokens that any candidate had who still waited, after a part of the time.

        NaN where no two waited.
        """
        until, shares = part * self.seconds, []
        for candidate, times in self.done.items():
            if times and times[-1] > until:
                shares.append(sum(at <= until for at in times) * (prompt_of(candidate) + ANSWER))
        return min(shares) / max(shares) if len(shares) > 1 and max(shares) else float("nan")


def play(server: Server, limit: LimitSpec | None, questions: dict[int, int] | None = None) -> Played:
    """Let all candidates ask all that they have to ask.

    Args:
        server: whom.
        limit: what the limiter keeps to; ``None`` for the client's own retries.
        questions: how many each has.
    """
    questions = questions or dict.fromkeys(range(CANDIDATES), QUESTIONS)
    played = Played(server, done={candidate: [] for candidate in questions})
    chance = random.Random(1)

    async def by_retries(tokens: int) -> bool:
        for attempt in range(RETRIES + 1):
            status, wait = await server.ask(tokens)
            if status == 200:
                return True
            await asyncio.sleep(wait if 0 < wait <= 60 else min(8, 0.5 * 2**attempt) * (1 - 0.25 * chance.random()))
        return False

    async def by_limiter(limiter: Limiter, who: int, tokens: int) -> bool:
        while True:
            async with limiter.leave(who, tokens) as leave:
                status, wait = await server.ask(tokens)
                if status == 429:
                    limiter.refused(wait, leave)
            if status == 200:
                return True

    async def candidate(who: int, limiter: Limiter | None) -> None:
        places, loop = asyncio.Semaphore(PLACES), asyncio.get_running_loop()

        async def one() -> None:
            async with places:
                tokens = prompt_of(who) + ANSWER
                is_answered = await (by_retries(tokens) if limiter is None else by_limiter(limiter, who, tokens))
                played.done[who] += [loop.time()] if is_answered else []
                played.lost += not is_answered

        await asyncio.gather(*(one() for _ in range(questions[who])))

    async def everybody() -> None:
        limiter = None if limit is None else Limiter(limit)
        await asyncio.gather(*(candidate(who, limiter) for who in questions))

    _, played.seconds = run(everybody())
    return played


def scenarios() -> dict[str, tuple[Played, Played | None]]:
    """Each by our limiter, and by the client's retries where that is another thing."""
    half = {who: QUESTIONS if who % 2 else QUESTIONS // 4 for who in range(CANDIDATES)}
    requests, tokens = LimitSpec(rpm=500), LimitSpec(tpm=200_000)
    return {
        "500 requests a minute": (play(Server(rpm=500), requests), play(Server(rpm=500), None)),
        "200,000 tokens a minute": (play(Server(tpm=2e5), tokens), play(Server(tpm=2e5), None)),
        "the same, and every second candidate has a quarter of the questions": (
            play(Server(tpm=2e5), tokens, half),
            play(Server(tpm=2e5), None, half),
        ),
        "500 requests, and one in fifty fails with a 500": (
            play(Server(rpm=500, errors=0.02), requests),
            play(Server(rpm=500, errors=0.02), None),
        ),
        "500 requests, and 650 were said": (play(Server(rpm=500), LimitSpec(rpm=650)), None),
        "500 requests, and nothing was said": (play(Server(rpm=500), LimitSpec()), None),
    }


def main() -> None:
    print("| | seconds | of the limit | sent in vain | lost | least / most tokens, after a quarter | after a half |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, sides in scenarios().items():
        for who, played in zip(("rfflow", "retries"), sides, strict=True):
            if played is not None:
                early, late = (f"{played.fairness(part):.2f}" for part in (0.25, 0.5))
                seen = played.server.seen
                print(
                    f"| {name}: {who} | {played.seconds:.0f} | {played.use:.2f} | {seen['wasted']} | {played.lost} "
                    f"| {early} | {late} |"
                )


if __name__ == "__main__":
    main()
