"""Jobs that overlap end with what Hydra's callbacks noted when they started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from rfflow.launch.job_callbacks import JobNotes


class Notes:
    """A callback that keeps notes in all the ways there are."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {"job": None, "of": {}}
        self.stack: list[int] = []
        self.open: set[int] = set()
        self.now = SimpleNamespace(job=None)
        self.events: list[tuple[str, int]] = []
        self.results: list[int] = []
        self.clock: dict[int, int] = {}
        self.counts: Counter[str] = Counter()
        self.done = 0

    def start(self, job: int) -> None:
        self.job = job
        self.fresh = [job]
        self.info["job"] = self.info["of"]["job"] = self.now.job = job
        self.stack.append(job)
        self.open.add(job)
        self.events.append(("start", job))
        self.clock[job] = 100 + job
        self.counts["start"] += 1

    def end(self, job: int) -> None:
        seen = self.job, *self.fresh, self.info["job"], self.info["of"]["job"], self.now.job, self.stack.pop()
        assert set(seen) == {job}
        self.fresh.append(-1)
        self.open.remove(job)
        self.events.append(("end", job))
        self.clock[job] = -self.clock[job]
        self.results.append(job)
        self.counts["end"] += 1
        self.done += 1
        self.last = job


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_job_ends_with_what_was_noted_when_it_started(order: tuple[int, ...]) -> None:
    """And what the callback collects over all the jobs is complete, as it is where they do not overlap."""
    callback, jobs = Notes(), []
    for job in range(3):
        jobs.append(JobNotes([callback]))
        with jobs[job].taken():
            callback.start(job)
    results, events = callback.results, callback.events
    for job in order:
        with jobs[job].given_back():
            callback.end(job)
    assert callback.results is results and results == list(order) and callback.done == 3 and callback.last == order[-1]
    assert callback.events is events
    assert events == [*(("start", job) for job in range(3)), *(("end", job) for job in order)]
    assert callback.open == set() and callback.stack == []
    assert callback.clock == {0: -100, 1: -101, 2: -102} and callback.counts == {"start": 3, "end": 3}


def test_what_a_job_takes_away_is_gone_for_it_alone() -> None:
    callback = SimpleNamespace(place="everybody's")
    first, second = JobNotes([callback]), JobNotes([callback])
    with first.taken():
        del callback.place
    with second.taken():
        callback.place = "the second's"
    with first.given_back():
        assert not hasattr(callback, "place")
    with second.given_back():
        assert callback.place == "the second's"


def test_callbacks_that_raise_or_keep_nothing_do_no_harm() -> None:
    @dataclass
    class Data:
        job: int = 0

    callback = SimpleNamespace(data=Data())
    callback.itself = callback.__dict__  # which is its own value
    first, second = (JobNotes([callback, object()]) for _ in range(2))
    for number, notes in enumerate((first, second), start=1):
        with notes.taken():
            callback.data.job = number
    with pytest.raises(KeyError), first.given_back():
        assert callback.data.job == 1
        raise KeyError
    assert callback.data.job == 2
