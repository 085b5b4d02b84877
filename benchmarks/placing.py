"""How runs are placed on several slots, simulated in virtual time with the real scheduler: no torch, seconds to run.

    python benchmarks/placing.py

A case is some runs of up to so many chunks on some slots. Chunks of different runs differ in length up to a factor of
four, and each varies by a tenth; a quarter of the runs is stopped early, an eighth is cloned, and a slot is lost once.
Moving a run to another slot costs half a chunk. Told are, over the seeds: the time until all is done as a multiple of
what no placing could be better than (the work divided by the slots, or the longest run by itself), how many runs move a
chunk, and the processor time of a decision.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rfflow.scheduling.scheduler import Assignment, Scheduler

CASES = [(8, 16, 1), (8, 16, 2), (64, 16, 8), (1000, 16, 64)]
"""Runs, chunks, slots."""
MOVE = 0.5
"""What a move costs, in chunks of the run that moves."""


@dataclass
class Job:
    """One run, as it would train."""

    cost: float
    chunks: int
    born: float = 0.0
    """When it could begin at the earliest."""
    done: int = 0
    home: int | None = None
    stops_after: int | None = None
    is_cloned_after: int | None = None

    @property
    def is_over(self) -> bool:
        return self.done >= min(self.chunks, self.stops_after or self.chunks)


@dataclass(frozen=True)
class Outcome:
    """What came of one simulation."""

    makespan: float
    """As a multiple of what is possible at best."""
    moves: float
    """A chunk."""
    microseconds: float
    """Of processor time a decision."""


class Simulation:
    """Lets a scheduler place jobs until none is left."""

    def __init__(self, runs: int, chunks: int, slots: int, seed: int):
        self._random = random.Random(seed)
        self._scheduler = Scheduler()
        self._jobs: list[Job] = []
        self._slots = slots
        self._ends: list[tuple[float, int, Assignment]] = []
        self._now = 0.0
        self._moves = 0
        self._decisions: list[float] = []
        self._lost_at = runs * chunks // 3 if slots > 1 else None
        for _ in range(runs):
            length = self._random.choice([max(1, chunks // 4), max(1, chunks // 2), chunks])
            self._add(Job(4.0 ** self._random.uniform(-0.5, 0.5), length))
        for job in self._random.sample(self._jobs, runs // 4):
            job.stops_after = self._random.randrange(1, chunks)
        for job in self._random.sample(self._jobs, runs // 8):
            job.is_cloned_after = self._random.randrange(1, chunks)

    def run(self) -> Outcome:
        """Play it to its end."""
        free = set(range(self._slots))
        while True:
            for slot in sorted(free):
                if self._begin(slot):
                    free.discard(slot)
            if not self._ends:
                break
            self._now, _, assignment = heapq.heappop(self._ends)
            free.add(assignment.slot)
            self._end(assignment)
        work = sum(job.cost * job.done for job in self._jobs)
        longest = max(job.born + job.cost * job.done for job in self._jobs)
        chunks = sum(job.done for job in self._jobs)
        best = max(work / self._slots, longest)
        return Outcome(self._now / best, self._moves / chunks, 1e6 * statistics.mean(self._decisions))

    def _add(self, job: Job) -> None:
        self._scheduler.add(len(self._jobs), job.chunks)
        self._jobs.append(job)

    def _begin(self, slot: int) -> bool:
        before = time.process_time()
        assignment = self._scheduler.next(slot)
        self._decisions.append(time.process_time() - before)
        if assignment is None:
            return False
        job = self._jobs[assignment.run]
        seconds = job.cost * self._random.uniform(0.95, 1.05)
        if job.home not in (None, slot):
            self._moves += 1
            seconds += MOVE * job.cost
        job.home = slot
        heapq.heappush(self._ends, (self._now + seconds, assignment.run, assignment))
        return True

    def _end(self, assignment: Assignment) -> None:
        job = self._jobs[assignment.run]
        job.done += 1
        self._scheduler.finish(assignment)
        if job.is_cloned_after == job.done:
            self._add(Job(job.cost, job.chunks, born=job.born + 0.95 * job.cost * job.done))
        if job.is_over:
            self._scheduler.remove(assignment.run)
        if self._lost_at is not None and sum(one.done for one in self._jobs[:64]) >= self._lost_at:
            self._lost_at = None
            self._lose(assignment.slot)

    def _lose(self, slot: int) -> None:
        """The worker of the slot is gone, and replaced: its runs are at home nowhere."""
        self._scheduler.lose(slot)
        for job in self._jobs:
            if job.home == slot:
                job.home = None


def outcomes(runs: int, chunks: int, slots: int, seeds: int) -> Iterator[Outcome]:
    """Yield the outcome of every seed."""
    for seed in range(seeds):
        yield Simulation(runs, chunks, slots, seed).run()


def spread(values: list[float], digits: int) -> str:
    """Write the median and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print("| runs | chunks | slots | makespan / best possible | moves a chunk | µs a decision |")
    print("|---|---|---|---|---|---|")
    for runs, chunks, slots in CASES:
        found = list(outcomes(runs, chunks, slots, seeds))
        cells = (
            spread([one.makespan for one in found], 2),
            spread([one.moves for one in found], 3),
            spread([one.microseconds for one in found], 0),
        )
        print(f"| {runs} | {chunks} | {slots} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
