"""When a worker counts as hung: never before anything is known, and by far longer than its own chunks were silent."""

from __future__ import annotations

from rfflow.engine.silence import FACTOR, LEAST, Silence


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def silence_after(gap: float) -> tuple[Silence, Clock]:
    """Return one that has seen a chunk with a silence of so many seconds."""
    clock = Clock()
    silence = Silence(clock)
    silence.begin(0)
    clock.now += gap
    silence.end(0)
    return silence, clock


def test_nothing_is_overdue_before_the_first_chunk_has_ended() -> None:
    clock = Clock()
    silence = Silence(clock)
    silence.begin(0)
    clock.now += 1e6
    assert silence.overdue([0]) == [] and silence.limit is None


def test_short_chunks_are_given_time_all_the_same() -> None:
    silence, clock = silence_after(1.0)
    silence.begin(1)
    clock.now += LEAST - 1
    assert silence.overdue([0, 1]) == []
    clock.now += 2
    assert silence.overdue([0, 1]) == [1]


def test_long_silences_are_known_from_the_run_itself() -> None:
    silence, clock = silence_after(100.0)
    silence.begin(1)
    clock.now += 100.0 * FACTOR
    assert silence.overdue([1]) == []
    clock.now += 1
    assert silence.overdue([1]) == [1]


def test_who_tells_something_is_not_hung() -> None:
    silence, clock = silence_after(1.0)
    silence.begin(1)
    for _ in range(5):
        clock.now += LEAST - 1
        silence.hear(1)
    assert silence.overdue([1]) == []
