"""Runs get their trainers: where each is built, waited for, given up, and built again when its worker is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.config.claims import Claims
from rfflow.engine.listening import Listener
from rfflow.engine.losses import Losses
from rfflow.errors import ConfigError
from rfflow.runs.events import Event, GiveUp, Heard, Lost, Prepare, Ready, Refused, Taken, Warm, WarmStart
from rfflow.runs.run import Run
from rfflow.scheduling.scheduler import Scheduler


class _SlotLost(Exception):
    """Who was asked something is gone; that has been handled."""


@dataclass(frozen=True)
class _Request:
    """What somebody waits for who has asked for a run to be built."""

    start: WarmStart | None
    checkpoint: Path | None
    only_if_light: bool


class Builds:
    """Has the trainers of runs built, and knows where each stands.

    Args:
        listener: reaches the workers.
        losses: knows which workers were lost while they built.
        scheduler: knows who trains next.
        checkpointer: knows whose files are whose.
        rooms: returns the slots where a run can be built at once.
        is_usable: whether a slot has not been given up.
        kept_off: returns the runs that cannot train on a slot.
    """

    def __init__(
        self,
        listener: Listener,
        losses: Losses,
        scheduler: Scheduler,
        checkpointer: Checkpointer,
        rooms: Callable[[], list[int]],
        is_usable: Callable[[int], bool],
        kept_off: Callable[[int], set[int]],
    ):
        self._listener = listener
        self._losses = losses
        self._scheduler = scheduler
        self._checkpointer = checkpointer
        self._rooms = rooms
        self._is_usable = is_usable
        self._kept_off = kept_off
        self._hydra: dict[int, Any] = {}
        self.homes: dict[int, int] = {}
        """The slot that holds a run's trainer, by run."""
        self._orphans: set[int] = set()
        """Runs whose trainers are gone with their workers; they are built again when they get a slot."""
        self._asked: dict[int, _Request] = {}
        """Runs that are being built while somebody waits for them."""
        self._early: list[Heard] = []
        """Answers that have come while another was awaited."""
        self._claims = Claims()
        self.rows: dict[str, str] = {}
        """Fingerprints of the rows that were read so far, by data set."""
        self.check_rows: Callable[[Mapping[str, str]], None] = lambda rows: None
        """Refuses rows that are not those of the experiment that is gone on with."""
        self.spent: Callable[[], Mapping[str, float]] = dict
        """Returns the USD that the experiment has spent, by the keys of its limits."""
        self.arguments: dict[str, Mapping[str, Any]] = {}
        """What the classes of the runs' configurations take."""

    def enrol(self, run: Run, hydra: Any) -> None:
        """Take a run in; nothing of it is built yet."""
        self._hydra[run.number] = hydra

    def holds(self, run: Run) -> bool:
        """Whether the run's trainer is there, or will be as soon as it is needed."""
        return run.number in self.homes or run.number in self._orphans

    @property
    def is_building(self) -> bool:
        """Whether somebody waits for a run that is being built; what else is heard meanwhile is handled."""
        return bool(self._asked)

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
                self._losses.check_build(run)
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
        hydra, upcoming = self._hydra.get(run.number), self.upcoming(slot)
        step = run.step if checkpoint is not None else 0
        card = run.card(self._checkpointer.owner(run))
        spent = self.spent()
        order = Prepare(card, hydra, start, checkpoint, step, is_at_boundary, only_if_light, upcoming, spent)
        self._listener.send(slot, order, "build")
        self.homes[run.number] = slot
        self._orphans.discard(run.number)

    def _roomiest(self, run: Run) -> int:
        """Return the slot with the fewest runs, a free one where there is one, and one that it has not ended."""
        held, ended = Counter(self.homes.values()), self._losses.where_built(run)
        rooms = list(self._rooms())
        allowed = [slot for slot in rooms if run.number not in self._kept_off(slot)]
        return min(allowed or rooms, key=lambda slot: (slot in ended, held[slot], slot))

    def upcoming(self, slot: int) -> tuple[int, ...]:
        """Return the runs that are at home on a slot, in the order in which they would get it."""
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
            self._listener.send(slot, Warm(run.number, start), "build")
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
        self.leave(run)

    def leave(self, run: Run) -> None:
        """Let go of a trainer whose run goes on elsewhere, if it has one."""
        slot = self.homes.pop(run.number, None)
        if slot is not None and self._is_usable(slot):
            self._listener.send(slot, GiveUp(run.number))

    def wait_for_weights(self, run: Run) -> None:
        """Wait until the weights of a run's last boundary are in their file; check that they are its own.

        Raises:
            ConfigError: if they are another run's.
        """
        self._listener.handle_while(lambda: self._checkpointer.is_writing(run))
        self._checkpointer.check_weights(run)

    def move(self, run: Run, slot: int) -> None:
        """Build a run on another slot than where it stands, from its newest checkpoint."""
        self.leave(run)
        checkpoint = self._checkpointer.newest(run)
        self._prepare(run, slot, start_of(run), checkpoint.path if checkpoint else None)

    def lose(self, slot: int) -> list[int]:
        """A worker is gone; return the runs that stood there."""
        there = [run for run, home in self.homes.items() if home == slot]
        for run in there:
            del self.homes[run]
        self._orphans.update(there)
        self._early = [early for early in self._early if early.slot != slot]
        return there

    def clear(self) -> None:
        """All workers have ended."""
        self.homes.clear()
        self._orphans.clear()
        self._claims = Claims()

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
            heard = self._listener.hear()
            if heard is None:
                continue
            if heard.slot == slot and heard.run == run and isinstance(heard.event, kinds):
                return heard.event
            if heard.run in self._asked and isinstance(heard.event, kinds):
                self._early.append(heard)
                continue
            self._listener.handle(heard)
            if heard.slot == slot and isinstance(heard.event, Lost):
                raise _SlotLost


def start_of(run: Run) -> WarmStart | None:
    """Return what a clone began with, if it began warm."""
    return WarmStart(run.parent or 0, run.paths.start, run.first_chunk) if run.is_warm else None
