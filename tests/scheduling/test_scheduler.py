"""Stories about who trains next."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.placing import outcomes
from rfflow.scheduling.scheduler import Assignment, Scheduler


def turns(scheduler: Scheduler, count: int = 100) -> list[tuple[int, int]]:
    """Play until nobody waits, or `count` turns; return who trained on which chunk."""
    played = []
    for _ in range(count):
        assignment = scheduler.next()
        if assignment is None:
            break
        played.append((assignment.run, assignment.chunk))
        scheduler.finish(assignment)
    return played


def scheduler_of(**chunks: int) -> Scheduler:
    scheduler = Scheduler()
    for run, count in chunks.items():
        scheduler.add(int(run[1:]), count)
    return scheduler


def test_all_runs_see_a_chunk_before_any_sees_the_next() -> None:
    assert turns(scheduler_of(r0=2, r1=2, r2=2)) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


def test_a_longer_run_goes_on_alone() -> None:
    assert turns(scheduler_of(r0=1, r1=3)) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_a_stopped_run_does_not_advance_and_resumes_where_it_was() -> None:
    scheduler = scheduler_of(r0=3, r1=3, r2=3)
    assert turns(scheduler, 3) == [(0, 0), (1, 0), (2, 0)]
    scheduler.stop(1)
    assert turns(scheduler, 2) == [(0, 1), (2, 1)]
    scheduler.resume(1)
    assert turns(scheduler) == [(0, 2), (1, 1), (2, 2), (1, 2)]


def test_a_resumed_run_does_not_first_make_up_for_missed_turns() -> None:
    scheduler = scheduler_of(r0=10, r1=10)
    scheduler.stop(1)
    turns(scheduler, 6)
    scheduler.resume(1)
    assert [run for run, _ in turns(scheduler, 4)] == [0, 1, 0, 1]


def test_a_late_run_gets_its_share_from_then_on() -> None:
    scheduler = scheduler_of(r0=6, r1=6)
    turns(scheduler, 8)
    scheduler.add(2, 4)
    assert turns(scheduler, 6) == [(0, 4), (1, 4), (2, 0), (0, 5), (1, 5), (2, 1)]


def test_a_failed_run_frees_its_slot() -> None:
    scheduler = scheduler_of(r0=2, r1=1)
    assert scheduler.next() == Assignment(0, 0)
    scheduler.remove(0)
    assert turns(scheduler) == [(1, 0)]
    assert scheduler.is_idle


def test_a_run_is_never_in_two_slots() -> None:
    scheduler = scheduler_of(r0=3, r1=3)
    first, second = scheduler.next(slot=0), scheduler.next(slot=1)
    assert first == Assignment(0, 0, 0) and second == Assignment(1, 0, 1)
    assert scheduler.next(slot=2) is None
    scheduler.finish(first)
    assert scheduler.next(slot=2) == Assignment(0, 1, 2)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_chunk_is_trained_once_whatever_happens(chunks: list[int], random) -> None:  # type: ignore[no-untyped-def]
    """Random stops and resumes on the way: in the end every run has seen each of its chunks, once and in order."""
    scheduler = Scheduler()
    for run, count in enumerate(chunks):
        scheduler.add(run, count)
    stopped: set[int] = set()
    played: list[tuple[int, int]] = []
    while not (scheduler.is_idle and not stopped):
        candidate = random.randrange(len(chunks))
        if candidate in scheduler and random.random() < 0.3:
            if candidate in stopped:
                scheduler.resume(candidate)
                stopped.discard(candidate)
            else:
                scheduler.stop(candidate)
                stopped.add(candidate)
        for run, chunk in turns(scheduler, 1):
            assert run not in stopped
            played.append((run, chunk))
    assert Counter(played) == Counter((run, chunk) for run, count in enumerate(chunks) for chunk in range(count))
    assert all([c for r, c in played if r == run] == list(range(count)) for run, count in enumerate(chunks))


def test_leading_are_those_that_others_have_yet_to_catch_up_with() -> None:
    scheduler = Scheduler()
    for run in range(3):
        scheduler.add(run, chunks=4)
    assert scheduler.leading() == set()
    first, second = scheduler.next(0), scheduler.next(1)
    assert first is not None and second is not None
    scheduler.finish(first)
    assert scheduler.leading() == {0}, "run 1 is under way and run 2 waits"
    scheduler.finish(second)
    scheduler.stop(2)
    assert scheduler.leading() == set(), "a stopped run holds nobody up"


@pytest.mark.parametrize(("runs", "slots"), [(8, 2), (64, 8)])
def test_devices_are_kept_busy_and_few_runs_move(runs: int, slots: int) -> None:
    """With chunks of different lengths, stops, clones and a lost device; docs/devices.md has the figures."""
    found = list(outcomes(runs, 16, slots, seeds=5))
    assert statistics.median(one.makespan for one in found) <= 1.15
    assert statistics.median(one.moves for one in found) <= 0.06
