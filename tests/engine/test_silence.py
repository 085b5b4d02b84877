"""When a worker counts as hung: by far longer silent than it, or any other, has been before."""

from __future__ import annotations

import pytest

from rfflow.engine.silence import FACTOR, LEAST, LEAST_OF_A_BUILD, LEAST_OF_THE_FIRST, Silence, Work


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def silence_after(gap: float, work: Work = "train") -> tuple[Silence, Clock]:
    """Return one that has seen something be done with a silence of so many seconds."""
    clock = Clock()
    silence = Silence(clock)
    silence.begin(0, work, 0)
    clock.now += gap
    silence.end(0, work, 0)
    return silence, clock


def overdue(silence: Silence) -> list[tuple[int, int | None, str]]:
    return [(found.slot, found.run, found.work) for found in silence.overdue()]


@pytest.mark.parametrize("work", ["train", "build", "write"])
def test_the_first_of_its_kind_has_hours_and_not_for_ever(work: Work) -> None:
    """A model may have to be fetched; a worker that hangs there must be found out all the same."""
    clock = Clock()
    silence = Silence(clock)
    silence.begin(0, work, 0)
    clock.now += LEAST_OF_THE_FIRST - 1
    assert silence.overdue() == []
    clock.now += 2
    assert overdue(silence) == [(0, 0, work)]


@pytest.mark.parametrize(("work", "least"), [("train", LEAST), ("write", LEAST), ("build", LEAST_OF_A_BUILD)])
def test_what_is_quick_is_given_time_all_the_same(work: Work, least: float) -> None:
    silence, clock = silence_after(1.0, work)
    silence.begin(1, work, 3)
    clock.now += least - 1
    assert silence.overdue() == []
    clock.now += 2
    assert overdue(silence) == [(1, 3, work)]


def test_long_silences_are_known_from_what_was_done_before() -> None:
    silence, clock = silence_after(100.0)
    silence.begin(1, "train", 3)
    clock.now += 100.0 * FACTOR
    assert silence.overdue() == []
    clock.now += 1
    assert [str(found) for found in silence.overdue()] == [
        "Slot 1 has been silent for more than 1000 s while run 3 trains there"
    ]


@pytest.mark.parametrize(("work", "gap"), [("train", LEAST - 1), ("build", LEAST_OF_A_BUILD - 1)])
def test_who_tells_something_is_not_hung(work: Work, gap: float) -> None:
    silence, clock = silence_after(1.0, work)
    silence.begin(1, work, 3)
    for _ in range(5):
        clock.now += gap
        silence.hear(1)
    assert silence.overdue() == []


def test_a_checkpoint_that_is_not_written_is_missed_although_its_worker_trains_on() -> None:
    silence, clock = silence_after(1.0, "write")
    silence.begin(1, "write", 3)
    for _ in range(3):
        clock.now += LEAST / 2
        silence.hear(1)
    assert overdue(silence) == [(1, 3, "write")]


def test_a_checkpoint_may_have_to_wait_for_a_long_step() -> None:
    silence, clock = silence_after(1.0, "write")
    silence.begin(0, "train", 0)
    clock.now += 300
    silence.end(0, "train", 0)
    silence.begin(1, "write", 3)
    clock.now += 300
    assert silence.overdue() == []


def test_a_run_that_is_built_between_two_steps_of_another_has_the_time_of_a_build() -> None:
    silence, clock = silence_after(1.0)
    silence.begin(1, "train", 3)
    silence.begin(1, "build", 4)
    assert silence.building(1) == 4
    clock.now += LEAST + 1
    assert silence.overdue() == []
    silence.end(1, "build", 4)
    assert silence.building(1) is None


def test_nothing_is_awaited_of_a_worker_that_is_gone() -> None:
    silence, clock = silence_after(1.0)
    silence.begin(1, "train", 3)
    silence.forget(1)
    clock.now += 1e6
    assert silence.overdue() == []
