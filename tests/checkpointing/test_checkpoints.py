"""Checkpoints are written while other runs train."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from rfflow.checkpointing.writer import Writer


@pytest.fixture
def before() -> Iterator[float]:
    interval = sys.getswitchinterval()
    yield interval
    sys.setswitchinterval(interval)


def test_while_one_is_written_training_soon_has_the_interpreter_back(before: float) -> None:
    seen: list[float] = []
    writer = Writer()
    writer.submit(0, lambda: seen.append(sys.getswitchinterval()))
    writer.wait(0)
    assert seen == [pytest.approx(1e-4)]
    assert sys.getswitchinterval() == before


def test_it_is_as_before_when_one_could_not_be_written(before: float) -> None:
    def fail() -> None:
        raise OSError("No space left on device")

    writer = Writer()
    writer.submit(0, fail)
    with pytest.raises(OSError, match="No space left"):
        writer.wait(0)
    assert sys.getswitchinterval() == before


def test_of_two_that_write_at_once_the_last_leaves_it_as_it_was(before: float) -> None:
    begun, ended = threading.Event(), threading.Event()
    one, other = Writer(), Writer()

    def wait_for_the_end() -> None:
        begun.set()
        ended.wait(30)

    def wait_for_the_other() -> None:
        begun.wait(30)

    one.submit(0, wait_for_the_other)
    other.submit(0, wait_for_the_end)
    one.wait(0)
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    ended.set()
    other.wait(0)
    assert sys.getswitchinterval() == before


def test_who_wants_it_back_sooner_does(before: float) -> None:
    sys.setswitchinterval(1e-5)
    seen: list[float] = []
    writer = Writer()
    writer.submit(0, lambda: seen.append(sys.getswitchinterval()))
    writer.wait(0)
    assert seen == [pytest.approx(1e-5)]
    assert sys.getswitchinterval() == pytest.approx(1e-5)
