"""Where the runs stand: which slot holds whose trainer, who trains there, and what is asked of the worker."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.engine.silence import Silence
from rfflow.runs.events import (
    Commit,
    Event,
    GiveUp,
    Heard,
    LeaveDevice,
    Lost,
    Prepare,
    ReadRows,
    Ready,
    Refused,
    Rows,
    SaveNow,
    Taken,
    Train,
    Warm,
    WarmStart,
)
from rfflow.runs.run import Run
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.slots.slots import Slots

log = logging.getLogger(__name__)

_WATCH = 5.0
"""Seconds between two looks at who is silent."""
MOST_LOSSES = 3
"""How often a worker is replaced, and how often a run may be the one that trained when one was lost."""


class SlotLost(Exception):
    """Who was asked something is gone; that has been handled."""


class Placement:
    """Turns what the engine wants of a run into commands to the slot where it stands.

    Args:
        slots: where runs can stand.
        scheduler: knows who trains next.
        checkpointer: knows what is saved.
        runs: returns the runs of the experiment.
        handle: takes whatever is heard while an answer is awaited.
    """

    def __init__(
        self,
        slots: Slots,
        scheduler: Scheduler,
        checkpointer: Checkpointer,
        runs: Callable[[], Iterable[Run]],
        handle: Callable[[Heard], None],
    ):
        self._slots = slots
        self._runs = runs
        self._scheduler = scheduler
        self._checkpointer = checkpointer
        self._handle = handle
        self._hydra: dict[int, Any] = {}
        self.homes: dict[int, int] = {}
        """The slot that holds a run's trainer, by run."""
        self.busy: dict[int, Assignment] = {}
        """What is going on each slot that is not free."""
        self._silence = Silence(lambda: self._listened)
        self._asked: set[int] = set()
        """Runs that are being built while somebody waits for them."""
        self._writers: dict[int, int] = {}
        """The slot that has written, or is writing, the last checkpoint of a run."""
        self._early: list[Heard] = []
        """Answers that have come while another was awaited."""
        self._losses: Counter[int] = Counter()
        """How often the worker of a slot was lost."""
        self._killers: Counter[int] = Counter()
        """How often a worker was lost while a run trained there."""
        self._orphans: set[int] = set()
        """Runs whose trainers are gone with their workers; they are built again when they get a slot."""
        self._listened = 0.0
        """Seconds for which workers could have been heard: not those in which this process was busy, or suspended."""

    def enrol(self, run: Run, hydra: Any) -> None:
        """Take a run in; nothing of it is built yet."""
        self._hydra[run.number] = hydra

    def holds(self, run: Run) -> bool:
        """Whether the run's trainer is there, or will be as soon as it is needed."""
        return run.number in self.homes or run.number in self._orphans

    def is_training(self, run: Run) -> bool:
        """Whether the run is in the middle of a chunk."""
        return any(assignment.run == run.number for assignment in self.busy.values())

    @property
    def is_building(self) -> bool:
        """Whether somebody waits for a run that is being built; what else is heard meanwhile is handled."""
        return bool(self._asked)

    @property
    def free(self) -> list[int]:
        """The slots on which nothing trains."""
        return [slot for slot in self.usable if slot not in self.busy]

    @property
    def usable(self) -> list[int]:
        """The slots that have not been given up."""
        return [slot for slot in range(self._slots.count) if self._losses[slot] <= MOST_LOSSES]

    def bound(self) -> set[int]:
        """Return the runs that cannot move now: what they have trained is nowhere but where they stand."""
        if self._slots.count == 1:
            return set()
        return {run.number for run in self._runs() if not self._checkpointer.is_on_disk(run)}

    # --- building -----------------------------------------------------------------------------------------------------

    def prepare(
        self, run: Run, start: WarmStart | None = None, checkpoint: Path | None = None, *, only_if_light: bool = False
    ) -> Ready:
        """Build a run up to its next step, and wait until it is.

        Raises:
            Exception: what the worker refuses it with.
        """
        while True:
            self.ask_to_prepare(run, start, checkpoint, only_if_light=only_if_light)
            try:
                return self.ready(run)
            except SlotLost:  # another will do
                continue

    def ask_to_prepare(
        self, run: Run, start: WarmStart | None = None, checkpoint: Path | None = None, *, only_if_light: bool = False
    ) -> None:
        """Have a run built where there is most room; :meth:`ready` waits for it."""
        self._prepare(run, self._roomiest(), start, checkpoint, only_if_light=only_if_light)
        self._asked.add(run.number)

    def ready(self, run: Run) -> Ready:
        """Wait for a run that is being built.

        Raises:
            Exception: what the worker refuses it with.
            SlotLost: if the worker is gone.
        """
        try:
            if run.number not in self.homes:
                raise SlotLost
            ready = self._await(self.homes[run.number], run.number, Ready, Refused)
        finally:
            self._asked.discard(run.number)
        if isinstance(ready, Refused):
            self.homes.pop(run.number, None)
            raise ready.error
        assert isinstance(ready, Ready)
        return ready

    def _prepare(
        self, run: Run, slot: int, start: WarmStart | None, checkpoint: Path | None, *, only_if_light: bool = False
    ) -> None:
        is_at_boundary = checkpoint is not None and bool(run.chunks) and run.step == run.chunks[-1].step
        hydra, upcoming = self._hydra.get(run.number), self._upcoming(slot)
        step = run.step if checkpoint is not None else 0
        card = run.card(self._checkpointer.owner(run))
        order = Prepare(card, hydra, start, checkpoint, step, is_at_boundary, only_if_light, upcoming)
        self._slots.send(slot, order)
        self.homes[run.number] = slot
        self._orphans.discard(run.number)

    def _roomiest(self) -> int:
        """Return the slot with the fewest runs, a free one where there is one."""
        held = Counter(self.homes.values())
        return min(self.free or self.usable, key=lambda slot: (held[slot], slot))

    def _upcoming(self, slot: int) -> tuple[int, ...]:
        return tuple(run for run in self._scheduler.upcoming() if self.homes.get(run) == slot)

    def warm(self, run: Run, start: WarmStart) -> None:
        """Give a clone that was built its parent's newest weights.

        Raises:
            OpError: if they do not fit.
        """
        slot = self.homes[run.number]
        self._slots.send(slot, Warm(run.number, start))
        answer = self._await(slot, run.number, Taken, Refused)
        if isinstance(answer, Refused):
            self.homes.pop(run.number, None)
            raise answer.error

    def give_up(self, run: Run) -> None:
        """Let go of a run's trainer, if it has one."""
        self._orphans.discard(run.number)
        slot = self.homes.pop(run.number, None)
        if slot is not None and slot in self.usable:
            self._slots.send(slot, GiveUp(run.number))

    def leave_device(self, run: Run) -> None:
        """Move what a run holds off the device, and off the host where that is full."""
        slot = self.homes.get(run.number)
        if slot is not None:
            self._slots.send(slot, LeaveDevice(run.number, self._upcoming(slot)))

    def read_rows(self) -> dict[str, str]:
        """Return the fingerprints of all rows that were read so far."""
        found: dict[str, str] = {}
        for slot in sorted(set(self.homes.values())):
            self._slots.send(slot, ReadRows())
            rows = self._await(slot, None, Rows)
            assert isinstance(rows, Rows)
            found.update(rows.fingerprints)
        return found

    # --- training -----------------------------------------------------------------------------------------------------

    def begin(self, assignment: Assignment, run: Run) -> None:
        """Let a run train its next chunk; what comes of it is heard."""
        slot, done = assignment.slot, run.chunks[-1].step if run.chunks else 0
        if self.homes.get(run.number) != slot:
            self.give_up(run)
            checkpoint = self._checkpointer.newest(run)
            self._prepare(run, slot, self._start_of(run), checkpoint.path if checkpoint else None)
        self.busy[slot] = assignment
        self._silence.begin(slot)
        self._slots.send(slot, Train(run.number, done, self._checkpointer.is_due(run), self._upcoming(slot)))

    def _start_of(self, run: Run) -> WarmStart | None:
        """Return what a clone began with, if it began warm."""
        if run.parent is None or not run.paths.start.exists():
            return None
        return WarmStart(run.parent, run.paths.start, run.first_chunk)

    def end(self, slot: int) -> Assignment:
        """Free the slot; return what went on there."""
        self._silence.end(slot)
        return self.busy.pop(slot)

    def commit(self, run: Run) -> None:
        """Have the checkpoint written that was begun at the run's boundary, if one was."""
        command = self._checkpointer.commit(run)
        if command is not None:
            self._write(run, command)

    def _write(self, run: Run, command: Commit | SaveNow) -> None:
        slot = self._writers[run.number] = self.homes[run.number]
        self._slots.send(slot, command)

    def save_now(self, run: Run) -> None:
        """Save a run as it stands, unless it is, and wait until that is done."""
        self.wait_until_saved(run)
        command = self._checkpointer.save_now(run)
        if command is not None:
            self._write(run, command)
            self.wait_until_saved(run)

    def wait_until_saved(self, run: Run) -> None:
        """Wait until the run's last checkpoint is on the disk, and what clones begin with."""
        while self._checkpointer.is_writing(run):
            self._hear()

    def wait_for_weights(self, run: Run) -> None:
        """Wait until the weights of a run's last boundary are in their file; check that they are its own.

        Raises:
            ConfigError: if they are another run's.
        """
        self.wait_until_saved(run)
        self._checkpointer.check_weights(run)

    def hurry(self) -> None:
        """Make whoever trains leave at the next place from which a resume is exact."""
        self._slots.hurry()

    # --- hearing ------------------------------------------------------------------------------------------------------

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for what any slot tells, and end the worker of one that has been silent for too long."""
        watches = self._slots.count > 1 and timeout != 0
        began = time.monotonic()
        heard = self._slots.hear(min(timeout or _WATCH, _WATCH) if watches else timeout)
        self._listened += min(time.monotonic() - began, 2 * _WATCH)
        if heard is not None:
            self._silence.hear(heard.slot)
        if watches:
            self._end_the_silent()
        return heard

    def _end_the_silent(self) -> None:
        for slot in self._silence.overdue(self.busy):
            log.warning(
                "Slot %s has been silent for more than %.0f s while run %s trains there; its worker is ended.",
                slot,
                self._silence.limit,
                self.busy[slot].run,
            )
            self._silence.forget(slot)
            self._slots.kill(slot)

    def _hear(self) -> None:
        heard = self.hear()
        if heard is not None:
            self._handle(heard)

    def _await(self, slot: int, run: int | None, *kinds: type[Event]) -> Event:
        """Wait for an answer; what else is heard meanwhile is handled as ever.

        Raises:
            SlotLost: if who should answer is gone.
        """
        while True:
            for early in self._early:
                if early.run == run and early.slot == slot:
                    self._early.remove(early)
                    return early.event
            heard = self.hear()
            if heard is None:
                continue
            if heard.slot == slot and heard.run == run and isinstance(heard.event, kinds):
                return heard.event
            if heard.run in self._asked and isinstance(heard.event, kinds):
                self._early.append(heard)
                continue
            self._handle(heard)
            if heard.slot == slot and isinstance(heard.event, Lost):
                raise SlotLost

    def lose(self, slot: int) -> tuple[list[int], int | None]:
        """Take note that a worker is gone.

        Returns:
            The runs that stood there, and the one of them that trained.
        """
        self._losses[slot] += 1
        self._silence.forget(slot)
        assignment = self.busy.pop(slot, None)
        there = [run for run, home in self.homes.items() if home == slot]
        for run in there:
            del self.homes[run]
        self._orphans.update(there)
        for run in [run for run, writer in self._writers.items() if writer == slot]:
            del self._writers[run]  # also of one that was given up meanwhile
            self._checkpointer.lost(run)
        self._early = [early for early in self._early if early.slot != slot]
        self._scheduler.lose(slot)
        if assignment is not None:
            self._killers[assignment.run] += 1
        return there, None if assignment is None else assignment.run

    def has_lost_too_many(self, run: int) -> bool:
        """Whether workers are lost again and again while a run trains."""
        return self._killers[run] > MOST_LOSSES

    def open(self) -> None:
        """Let there be workers."""
        self._slots.open()

    def close(self) -> None:
        """Let go of every trainer."""
        self._slots.close()
        self.homes.clear()
        self.busy.clear()
        self._orphans.clear()
