"""Signals while an experiment runs; what comes of them with real trainers is in test_killing.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from rfflow.engine.interruption import Interrupted, Interruption


class Heard(Interruption):
    """Notes instead of leaving."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.hurried = 0
        super().__init__(600, self.hurry, lambda: "")

    def hurry(self) -> None:
        self.hurried += 1

    def _leave(self, status: int) -> None:
        self.left.append(status)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Begin with the system's own, even where the tests run under nohup, and leave what was there."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> Heard:
    interruption = Heard()
    with interruption.heard():
        for number in numbers:
            os.kill(os.getpid(), number)
    return interruption


@pytest.mark.usefixtures("handlers")
def test_a_closed_terminal_asks_to_save_and_leave() -> None:
    """The shell and the system both say it, often more than once: nobody is in a hurry by that."""
    interruption = send(signal.SIGHUP, signal.SIGHUP)
    assert (interruption.number, interruption.hurried, interruption.left) == (signal.SIGHUP, 1, [])
    with pytest.raises(Interrupted) as interrupted:
        interruption.raise_if_asked()
    assert interrupted.value.exit_status == 129


@pytest.mark.usefixtures("handlers")
def test_nohup_is_kept_to() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert send(signal.SIGHUP).number is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        ((signal.SIGHUP, signal.SIGTERM), []),
        ((signal.SIGTERM, signal.SIGHUP), []),  # as systemd ends a session
        ((signal.SIGHUP, signal.SIGINT, signal.SIGINT), [130]),
        ((signal.SIGINT, signal.SIGINT), [130]),
        ((signal.SIGINT, signal.SIGTERM), [143]),
    ],
)
def test_only_who_insists_ends_it_at_once(numbers: tuple[int, ...], left: list[int]) -> None:
    interruption = send(*numbers)
    assert (interruption.number, interruption.left) == (numbers[0], left)
    assert (interruption._timer is not None) == (signal.SIGTERM in numbers), "it leaves nothing but some seconds"


@pytest.mark.usefixtures("handlers")
def test_a_notebook_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that somebody has there would be lost by the second Ctrl-C."""
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    interruption = Heard()
    with pytest.raises(Interrupted), interruption.heard():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert not interruption.left


def test_in_another_thread_signals_are_left_to_the_main_one() -> None:
    before = signal.getsignal(signal.SIGHUP)
    seen: list[object] = []

    def run() -> None:
        with Heard().heard():
            seen.append(signal.getsignal(signal.SIGHUP))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
