"""``engine.fusion=auto`` takes turns, and keeps what is faster by more than chance."""

from __future__ import annotations

import pytest

from rfflow.worker.gangs.calibration import Choice, Choices


def _tried(fused: float, alone: float, wobble: float = 0.0) -> Choice:
    choice = Choice(4, 32)
    for index in range(100):
        if choice.is_fused is not None:
            break
        sign = 1 if index // 2 % 2 else -1
        way = choice.next()
        choice.add(way, (fused if way else alone) * (1 + sign * wobble), 128)
    return choice


@pytest.mark.parametrize(
    ("fused", "alone", "wobble", "is_fused"),
    [(1.0, 2.0, 0.01, True), (2.0, 1.0, 0.01, False), (0.99, 1.0, 0.0, False), (0.9, 1.0, 0.5, False)],
    ids=["faster", "slower", "hardly faster", "within the noise"],
)
def test_what_is_faster_beyond_the_noise_is_kept(fused: float, alone: float, wobble: float, is_fused: bool) -> None:
    choice = _tried(fused, alone, wobble)
    assert choice.is_fused is is_fused
    assert ("together" if is_fused else "one by one") in str(choice)


def test_both_ways_are_tried_as_often() -> None:
    choice, ways = Choice(2, 8), []
    while choice.is_fused is None:
        ways.append(choice.next())
        choice.add(ways[-1], 1.0, 16)
    assert ways == [True, False] * (len(ways) // 2)
    assert len(ways) >= 10


def test_what_was_found_out_holds_for_what_is_alike() -> None:
    choices = Choices()
    first = choices.of("base", 4, 4 * 32)
    first.refuse("it is slower")
    assert choices.of("base", 4, 4 * 33) is first
    assert choices.of("base", 4, 4 * 128).is_fused is None
    assert choices.of("base", 3, 3 * 32).is_fused is None
    assert choices.of("other", 4, 4 * 32).is_fused is None
