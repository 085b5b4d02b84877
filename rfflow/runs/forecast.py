"""What an experiment is about to ask of servers, said before it asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """Requests to servers, with the most that they may take."""

    requests: int = 0
    tokens: int = 0
    """Of prompts and the longest answers."""
    usd: float = 0.0
    """Of the requests that have a price."""
    unpriced: int = 0
    """Requests whose price nobody has said."""

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.unpriced + other.unpriced,
        )


def told(forecasts: Iterable[Forecast]) -> str | None:
    """Return a sentence on what so many runs are about to ask; ``None`` where they ask nobody."""
    those = [each for each in forecasts if each.requests]
    all_of_them = sum(those, Forecast())
    if not those:
        return None
    runs, requests = len(those), all_of_them.requests
    who = "1 run asks" if runs == 1 else f"{runs} runs ask"
    money = f", {all_of_them.usd:.2g} USD" if all_of_them.usd else ""
    if all_of_them.unpriced == requests:
        money = "; prices does not say what that costs"
    elif all_of_them.unpriced:
        money += f" besides {all_of_them.unpriced} requests of which prices does not say what they cost"
    return (
        f"{who} servers {requests:,} times: at most about {_short(all_of_them.tokens)} tokens{money}. Stop with Ctrl-C."
    )


def _short(count: int) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
