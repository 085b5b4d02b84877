"""``engine.fusion=auto``: whether a gang gains anything is found out while it trains, by taking turns.

Either way the bits are the same, which is looked at first; so trying costs nothing but what the slower way takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

_ROUNDS = 6
"""Rounds that are timed each way, behind one that warms up."""
_LEAST = 0.02
"""What must be gained at least: less is not worth waiting for each other."""


@dataclass
class Choice:
    """What is known of so many runs with so many tokens on one base."""

    members: int
    tokens: int
    """A run's, in one round."""
    is_exact: bool | None = None
    """Whether a pass has given each run the bits that it has alone; None before that was looked at."""
    is_fused: bool | None = None
    """What was chosen; None while it is tried."""
    reason: str = ""
    is_told: bool = False
    """Whether the log says so."""
    _times: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def next(self) -> bool:
        """Whether the next round is done together."""
        if self.is_fused is not None:
            return self.is_fused
        return len(self._times[True]) <= len(self._times[False])

    def refuse(self, reason: str) -> None:
        """Choose to do it one by one."""
        self.is_fused, self.reason = False, reason

    def add(self, is_fused: bool, seconds: float, tokens: int) -> None:
        """Take in what a round took; choose when there are enough.

        Args:
            is_fused: how it was done.
            seconds: how long.
            tokens: of all runs.
        """
        self._times[is_fused].append(seconds / tokens)
        if self.is_fused is not None or min(map(len, self._times.values())) <= _ROUNDS:
            return
        fused, alone = (self._times[way][1:] for way in (True, False))
        gain = 1 - statistics.median(fused) / statistics.median(alone)
        noise = max(_LEAST, _spread(fused) + _spread(alone))
        self.is_fused = gain > noise
        verb = "faster" if gain > 0 else "slower"
        self.reason = f"a token is {abs(gain):.0%} {verb} together, and times differ by {noise:.0%}"

    def __str__(self) -> str:
        how = "go together" if self.is_fused else "go one by one"
        return f"{self.members} runs with about {self.tokens} tokens {how}: {self.reason}"


def _spread(times: list[float]) -> float:
    """Return how uncertain the median of some times is, as a part of it."""
    middle = statistics.median(times)
    return statistics.median(abs(one - middle) for one in times) / middle / len(times) ** 0.5


class Choices:
    """All that was found out on a device."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Choice] = {}

    def of(self, base: Hashable, members: int, tokens: int) -> Choice:
        """Return what is known, or is to be found out, of some runs on a base.

        Args:
            base: which one.
            members: how many runs.
            tokens: of all of them; what is alike to a factor of two is one case.
        """
        a_run = tokens / members
        key = base, members, round(a_run).bit_length()
        if key not in self._found:
            self._found[key] = Choice(members, round(a_run))
        return self._found[key]


def now(device: torch.device) -> float:
    """Return the seconds that are compared: of the processor where nothing else computes, or by the clock."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time()
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()
