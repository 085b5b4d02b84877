"""Where the runs stand: which slot holds whose trainer, who trains there, and what is asked of the worker."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.config.claims import Claims
from rfflow.engine.losses import Losses
from rfflow.engine.silence import Silence
from rfflow.errors import ConfigError
from rfflow.runs.events import (
    Commit,
    Event,
    GiveUp,
    Heard,
    LeaveDevice,
    Lost,
    Prepare,
    Ready,
    Refused,
    Saved,
    SaveNow,
    Taken,
    Train,
    Unsaved,
    Up,
    Warm,
    WarmStart,
)
from rfflow.runs.run import Run
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.slots.slots import Slots

log = logging.getLogger(__name__)

_WATCH = 5.0
"""Seconds between two looks at who is silent."""


class _SlotLost(Exception):
    """Who was asked something is gone; that has been handled."""


@dataclass(frozen=True)
class _Request:
    """What somebody waits for who has asked for a run to be built."""

    start: WarmStart | None
    checkpoint: Path | None
    only_if_light: bool


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
        self.busy: dict[int, dict[int, Assignment]] = {}
        """What is going on each slot that is not free, by run: one, or those that go together."""
        self._silence = Silence(lambda: self._listened)
        self._asked: dict[int, _Request] = {}
        """Runs that are being built while somebody waits for them."""
        self.rows: dict[str, str] = {}
        """Fingerprints of the rows that were read so far, by data set."""
        self.check_rows: Callable[[Mapping[str, str]], None] = lambda rows: None
        """Refuses rows that are not those of the experiment that is gone on with."""
        self.arguments: dict[str, Mapping[str, Any]] = {}
        """What the classes of the runs' configurations take."""
        self._claims = Claims()
        self._writers: dict[int, int] = {}
        """The slot that has written, or is writing, the last checkpoint of a run."""
        self._early: list[Heard] = []
        """Answers that have come while another was awaited."""
        self.losses = Losses()
        self._suspects: set[int] = set()
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
        return any(run.number in group for group in self.busy.values())

    def is_suspect(self, run: int) -> bool:
        """Whether a worker was lost while the run trained beside others: it trains alone from then on."""
        return run in self._suspects

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
        return self.losses.usable(range(self._slots.count))

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
            Exception: what it is refused with.
        """
        self.ask_to_prepare(run, start, checkpoint, only_if_light=only_if_light)
        return self.ready(run)

    def ask_to_prepare(
        self, run: Run, start: WarmStart | None = None, checkpoint: Path | None = None, *, only_if_light: bool = False
    ) -> None:
        """Have a run built where there is most room; :meth:`ready` waits for it."""
        self._prepare(run, self._roomiest(run), start, checkpoint, only_if_light=only_if_light)
        self._asked[run.number] = _Request(start, checkpoint, only_if_light)

    def ready(self, run: Run) -> Ready:
        """Wait for a run that is being built, elsewhere if its worker is lost.

        Raises:
            Exception: what it is refused with.
            ConfigError: if it needs what another run has, or workers are lost by it.
        """
        try:
            ready = self._await_ready(run)
            self._claims.hold(run.number, ready.held)
            self.check_rows(ready.rows)
        except ConfigError as error:
            self.give_up(run)
            raise error if str(error).startswith(run.called) else ConfigError(f"{run.called}: {error}") from error
        finally:
            self._asked.pop(run.number, None)
        self.rows.update(ready.rows)
        self.arguments.update(ready.arguments)
        return ready

    def _await_ready(self, run: Run) -> Ready:
        while True:
            try:
                if run.number not in self.homes:
                    raise _SlotLost
                answer = self._await(self.homes[run.number], run.number, Ready, Refused)
            except _SlotLost:
                self.losses.check_build(run)
                asked = self._asked[run.number]
                self._prepare(
                    run, self._roomiest(run), asked.start, asked.checkpoint, only_if_light=asked.only_if_light
                )
                continue
            if isinstance(answer, Refused):
                self.homes.pop(run.number, None)
                raise answer.error
            assert isinstance(answer, Ready)
            return answer

    def _prepare(
        self, run: Run, slot: int, start: WarmStart | None, checkpoint: Path | None, *, only_if_light: bool = False
    ) -> None:
        is_at_boundary = checkpoint is not None and bool(run.chunks) and run.step == run.chunks[-1].step
        hydra, upcoming = self._hydra.get(run.number), self._upcoming(slot)
        step = run.step if checkpoint is not None else 0
        card = run.card(self._checkpointer.owner(run))
        order = Prepare(card, hydra, start, checkpoint, step, is_at_boundary, only_if_light, upcoming)
        self._silence.begin(slot, "build", run.number)
        self._slots.send(slot, order)
        self.homes[run.number] = slot
        self._orphans.discard(run.number)

    def _roomiest(self, run: Run) -> int:
        """Return the slot with the fewest runs, a free one where there is one, and one that it has not ended."""
        held, ended = Counter(self.homes.values()), self.losses.where_built(run)
        return min(self.free or self.usable, key=lambda slot: (slot in ended, held[slot], slot))

    def _upcoming(self, slot: int) -> tuple[int, ...]:
        return tuple(run for run in self._scheduler.upcoming() if self.homes.get(run) == slot)

    def warm(self, run: Run, start: WarmStart) -> None:
        """Give a clone that was built its parent's newest weights.

        Raises:
            OpError: if they do not fit.
        """
        try:
            if run.number not in self.homes:
                raise _SlotLost
            slot = self.homes[run.number]
            self._silence.begin(slot, "build", run.number)
            self._slots.send(slot, Warm(run.number, start))
            answer = self._await(slot, run.number, Taken, Refused)
        except _SlotLost:  # built anew, it has them
            self.prepare(run, start)
            return
        if isinstance(answer, Refused):
            self.homes.pop(run.number, None)
            raise answer.error

    def give_up(self, run: Run) -> None:
        """Let go of a run's trainer, if it has one."""
        self._orphans.discard(run.number)
        self._claims.release(run.number, has_trained=run.step > 0)
        self._leave(run)

    def _leave(self, run: Run) -> None:
        slot = self.homes.pop(run.number, None)
        if slot is not None and slot in self.usable:
            self._slots.send(slot, GiveUp(run.number))

    def leave_device(self, run: Run) -> None:
        """Move what a run holds off the device, and off the host where that is full."""
        slot = self.homes.get(run.number)
        if slot is not None:
            self._slots.send(slot, LeaveDevice(run.number, self._upcoming(slot)))

    # --- training -----------------------------------------------------------------------------------------------------

    def begin(self, group: Sequence[Assignment], runs: Sequence[Run]) -> None:
        """Let runs train their next chunks on one slot; what comes of each is heard."""
        slot = group[0].slot
        for run in runs:
            if self.homes.get(run.number) != slot:
                self._leave(run)
                checkpoint = self._checkpointer.newest(run)
                self._prepare(run, slot, self._start_of(run), checkpoint.path if checkpoint else None)
        self.busy[slot] = {assignment.run: assignment for assignment in group}
        for run in runs:
            self._silence.begin(slot, "train", run.number)
        upcoming = self._upcoming(slot)
        first, *beside = [
            Train(run.number, run.chunks[-1].step if run.chunks else 0, self._checkpointer.is_due(run), upcoming)
            for run in runs
        ]
        self._slots.send(slot, replace(first, beside=tuple(beside)))

    def _start_of(self, run: Run) -> WarmStart | None:
        """Return what a clone began with, if it began warm."""
        if run.parent is None or not run.paths.start.exists():
            return None
        return WarmStart(run.parent, run.paths.start, run.first_chunk)

    def end(self, slot: int, run: int) -> Assignment:
        """End a run's turn, and free the slot if that was the last one there; return what it did."""
        assignment = self.busy[slot].pop(run)
        if not self.busy[slot]:
            del self.busy[slot]
        self._silence.end(slot, "train", run)
        self._end_turn(run)
        return assignment

    def _end_turn(self, number: int) -> None:
        for run in self._runs():
            if run.number == number:
                run.turn = None

    def commit(self, run: Run) -> None:
        """Have the checkpoint written that was begun at the run's boundary, if one was."""
        command = self._checkpointer.commit(run)
        if command is not None:
            self._write(run, command)

    def _write(self, run: Run, command: Commit | SaveNow) -> None:
        slot = self._writers[run.number] = self.homes[run.number]
        self._silence.begin(slot, "write", run.number)
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
            self._note(heard)
        if watches:
            self._end_the_silent()
        return heard

    def _note(self, heard: Heard) -> None:
        self._silence.hear(heard.slot)
        if isinstance(heard.event, Ready | Refused | Taken):
            self._silence.end(heard.slot, "build", heard.run)
        elif isinstance(heard.event, Saved | Unsaved):
            self._silence.end(heard.slot, "write", heard.run)
        elif isinstance(heard.event, Up):
            self.losses.up(heard.slot)

    def _end_the_silent(self) -> None:
        for overdue in self._silence.overdue():
            log.warning("%s; its worker is ended.", overdue)
            self._silence.forget(overdue.slot)
            self._slots.kill(overdue.slot)

    def _hear(self) -> None:
        heard = self.hear()
        if heard is not None:
            self._handle(heard)

    def _await(self, slot: int, run: int | None, *kinds: type[Event]) -> Event:
        """Wait for an answer; what else is heard meanwhile is handled as ever.

        Raises:
            _SlotLost: if who should answer is gone.
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
                raise _SlotLost

    def lose(self, slot: int, lost: Lost) -> tuple[list[int], str]:
        """Take note that a worker is gone.

        Returns:
            The runs that stood there, and what it did.
        """
        group, building = list(self.busy.pop(slot, {})), self._silence.building(slot)
        self._silence.forget(slot)
        for number in group:
            self._end_turn(number)
        if len(group) > 1:  # each of them may be to blame, and is found out when it trains alone
            self._suspects.update(group)
        training = group[0] if len(group) == 1 else None
        self.losses.add(slot, lost.reason, training=training, building=building, is_for_good=lost.is_for_good)
        there = [run for run, home in self.homes.items() if home == slot]
        for run in there:
            del self.homes[run]
        self._orphans.update(there)
        for run in [run for run, writer in self._writers.items() if writer == slot]:
            del self._writers[run]  # also of one that was given up meanwhile
            self._checkpointer.lost(run)
        self._early = [early for early in self._early if early.slot != slot]
        self._scheduler.lose(slot)
        if group:
            words = "run" if len(group) == 1 else "runs"
            return there, f" while {words} {', '.join(map(str, group))} trained"
        return there, "" if building is None else f" while run {building} was built"

    def open(self) -> None:
        """Let there be workers."""
        self._slots.open()

    def close(self) -> None:
        """Let go of every trainer."""
        self._slots.close()
        self.homes.clear()
        self.busy.clear()
        self._orphans.clear()
        self._claims = Claims()
