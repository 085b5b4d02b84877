"""Where the runs stand: which slot holds whose trainer, who trains there, and what is asked of the worker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.engine.building import Builds
from rfflow.engine.listening import Listener
from rfflow.engine.losses import Losses
from rfflow.runs.events import Commit, Heard, LeaveDevice, Lost, SaveNow, Train
from rfflow.runs.run import Run
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.slots.slots import Slots


class Placement:
    """Turns what the engine wants of a run into commands to the slot where it stands.

    Args:
        slots: where runs can stand.
        scheduler: knows who trains next.
        checkpointer: knows what is saved.
        runs: returns the runs of the experiment.
        handle: takes whatever is heard while an answer is awaited.
        limited: returns the runs that must stand on one slot together, as what they ask is limited there.
    """

    def __init__(
        self,
        slots: Slots,
        scheduler: Scheduler,
        checkpointer: Checkpointer,
        runs: Callable[[], Iterable[Run]],
        handle: Callable[[Heard], None],
        limited: Callable[[], Collection[int]] = tuple,
    ):
        self._slots = slots
        self._runs = runs
        self._limited = limited
        self._scheduler = scheduler
        self._checkpointer = checkpointer
        self.losses = Losses()
        self._listener = Listener(slots, self.losses, handle)
        self.builds = Builds(
            self._listener,
            self.losses,
            scheduler,
            checkpointer,
            rooms=lambda: self.free or self.usable,
            is_usable=lambda slot: slot in self.usable,
            kept_off=self.kept_off,
        )
        self.busy: dict[int, dict[int, Assignment]] = {}
        """What is going on each slot that is not free, by run: one, or those that go together."""
        self._suspects: set[int] = set()
        self._writers: dict[int, int] = {}
        """The slot that has written, or is writing, the last checkpoint of a run."""

    def is_training(self, run: Run) -> bool:
        """Whether the run is in the middle of a chunk."""
        return any(run.number in group for group in self.busy.values())

    def is_suspect(self, run: int) -> bool:
        """Whether a worker was lost while the run trained beside others: it trains alone from then on."""
        return run in self._suspects

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

    def kept_off(self, slot: int) -> set[int]:
        """Return the runs that cannot be on a slot, as others stand elsewhere that ask under limits as they do."""
        if self._slots.count == 1:
            return set()
        limited = set(self._limited())
        if not limited:
            return limited
        training = [place for place, group in self.busy.items() if group.keys() & limited]
        begun = {run.number for run in self._runs() if run.number in limited and run.step}  # they may be unable to move
        homes = {number: home for number, home in self.builds.homes.items() if number in limited}
        there = training or [homes[number] for number in begun & homes.keys()] or list(homes.values())
        return limited if there and slot != min(there) else set()

    def leave_device(self, run: Run) -> None:
        """Move what a run holds off the device, and off the host where that is full."""
        slot = self.builds.homes.get(run.number)
        if slot is not None:
            self._listener.send(slot, LeaveDevice(run.number, self.builds.upcoming(slot)))

    # --- training -----------------------------------------------------------------------------------------------------

    def begin(self, group: Sequence[Assignment], runs: Sequence[Run]) -> None:
        """Let runs train their next chunks on one slot; what comes of each is heard."""
        slot = group[0].slot
        for run in runs:
            if self.builds.homes.get(run.number) != slot:
                self.builds.move(run, slot)
        self.busy[slot] = {assignment.run: assignment for assignment in group}
        upcoming = self.builds.upcoming(slot)
        first, *beside = [
            Train(
                run.number,
                run.chunks[-1].step if run.chunks else 0,
                self._checkpointer.is_due(run),
                upcoming,
                environ=run.environ,
            )
            for run in runs
        ]
        for turn in beside:
            self._listener.begin_turn(slot, turn.run)
        self._listener.send(slot, replace(first, beside=tuple(beside)), "train")

    def end(self, slot: int, run: int) -> Assignment:
        """End a run's turn, and free the slot if that was the last one there; return what it did."""
        assignment = self.busy[slot].pop(run)
        if not self.busy[slot]:
            del self.busy[slot]
        self._listener.end_turn(slot, run)
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
        slot = self._writers[run.number] = self.builds.homes[run.number]
        self._listener.send(slot, command, "write")

    def save_now(self, run: Run) -> None:
        """Save a run as it stands, unless it is, and wait until that is done."""
        self.wait_until_saved(run)
        command = self._checkpointer.save_now(run)
        if command is not None:
            self._write(run, command)
            self.wait_until_saved(run)

    def wait_until_saved(self, run: Run) -> None:
        """Wait until the run's last checkpoint is on the disk, and what clones begin with."""
        self._listener.handle_while(lambda: self._checkpointer.is_writing(run))

    def hurry(self) -> None:
        """Make whoever trains leave at the next place from which a resume is exact."""
        self._slots.hurry()

    def hear(self, timeout: float | None = None) -> Heard | None:
        """Wait for what any slot tells, up to so many seconds."""
        return self._listener.hear(timeout)

    def lose(self, slot: int, lost: Lost) -> tuple[list[int], str]:
        """Take note that a worker is gone.

        Returns:
            The runs that stood there, and what it did.
        """
        group, building = list(self.busy.pop(slot, {})), self._listener.lose(slot)
        for number in group:
            self._end_turn(number)
        if len(group) > 1:  # each of them may be to blame, and is found out when it trains alone
            self._suspects.update(group)
        training = group[0] if len(group) == 1 else None
        self.losses.add(slot, lost.reason, training=training, building=building, is_for_good=lost.is_for_good)
        there = self.builds.lose(slot)
        for run in [run for run, writer in self._writers.items() if writer == slot]:
            del self._writers[run]  # also of one that was given up meanwhile
            self._checkpointer.lost(run)
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
        self.builds.clear()
        self.busy.clear()
