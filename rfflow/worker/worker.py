"""What stands on one device and trains there, a chunk at a time.

A worker carries out commands in order and tells events; it knows nothing of how it is reached, of other workers, or of
what becomes of what it tells. What a command changes on the disk is named by the command.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from lightning_fabric import Fabric

from rfflow.checkpointing.checkpoints import Checkpoint
from rfflow.checkpointing.disk import is_disk_trouble
from rfflow.config.spec import EvalSpec, ExperimentSpec, RunSpec, TrainSpec
from rfflow.errors import EngineError, OpError
from rfflow.evals.quotas import Quotas
from rfflow.runs.events import (
    Again,
    Boundary,
    Command,
    Commit,
    Event,
    Failed,
    Finished,
    GiveUp,
    LeaveDevice,
    Prepare,
    Progress,
    Ready,
    Refused,
    SaveNow,
    Taken,
    Train,
    Unsaved,
    Warm,
)
from rfflow.worker.drafts import Drafts, Tell, checkpoints_of
from rfflow.worker.evaluation.pieces import wants_base
from rfflow.worker.evaluation.together import Together
from rfflow.worker.gangs.forming import Gangs
from rfflow.worker.memory.memory import free_memory, is_out_of_memory, out_of_memory_advice
from rfflow.worker.memory.offload import RunTensors, Tier
from rfflow.worker.session import Session, make_session
from rfflow.worker.shared import Shared

log = logging.getLogger(__name__)


@dataclass
class _Turn:
    """A chunk that is going."""

    order: Train
    started: float
    step: int = 0
    """Where the run was at its last pause."""
    switched: float = 0.0
    """What the run had spent on switches when it began."""
    has_begun: bool = False
    is_second_try: bool = False
    """Whether the memory was not enough before."""
    is_to_build: bool = False
    checkpoint: Checkpoint | None = None
    """Where the second try goes on from."""
    trouble: Exception | None = None
    """What the run fails of, once what it has logged is told."""


class Worker:
    """The runs that have a trainer on one device, and whose turn it is there."""

    def __init__(
        self,
        spec: ExperimentSpec,
        fabric: Fabric,
        tell: Tell,
        make_session: Callable[..., Session] = make_session,
    ):
        """Hold nobody yet.

        Args:
            spec: what all runs have in common.
            fabric: which has the device.
            tell: hears what happens beside a command, from the thread that writes checkpoints.
            make_session: called as :func:`rfflow.worker.session.make_session` is.
        """
        self._spec = spec
        self._device = fabric.device
        self.device = str(fabric.device)
        self._tell = tell
        self._make_session = make_session
        self.shared = Shared(fabric, spec.memory, spec.seed, _sharers(spec, fabric.device.type))
        self.shared.memory.suspended = self._movable
        self.shared.quotas = Quotas(spec.quotas)
        self.sessions: dict[int, Session] = {}
        """By the numbers of their runs."""
        self._prepared: dict[int, Prepare] = {}
        self._active: list[Session] = []
        """Whoever has the device."""
        self._upcoming: tuple[int, ...] = ()
        self._turns: dict[int, _Turn] = {}
        """The chunks that are going, by run."""
        self._gangs = Gangs(self.shared, spec.fusion)
        self._together = Together()
        self._is_hurried = False
        self._drafts = Drafts(tell)

    def do(self, command: Command) -> list[Event]:
        """Carry out a command, and return the events that it leads to; a chunk only begins, see :meth:`advance`."""
        match command:
            case Train():
                self._begin_turns(command)
            case Prepare():
                return [self._prepare(command)]
            case Warm():
                return [self._warm(command)]
            case Commit():
                self._drafts.commit(command)
            case SaveNow():
                return self._save_now(command)
            case LeaveDevice():
                self._leave_device(command)
            case GiveUp():
                self._give_up(command.run)
        return []

    def advance(self) -> tuple[int, Event] | None:
        """Train on to the next event of a chunk that was begun, and say whose it is; ``None`` when all are over.

        Deliberately no generator: a trainer's greenlet has to be gone on with at the same depth of the C stack at which
        it was begun, and calls from Python to Python add nothing to it. Libraries that walk the stack (torch does, for
        each of its errors) would otherwise run into what lies there by now.
        """
        while self._turns:
            run = self._gangs.next()
            if run is None:
                run = self._together.next()
            turn = self._turns[next(iter(self._turns)) if run is None else run]
            event = self._train_on(turn)
            if event is not None:
                return turn.order.run, event
        return None

    def _train_on(self, turn: _Turn) -> Event | None:
        try:
            return self._advance(turn)
        except (Exception, SystemExit) as error:  # one run failing is news; the others go on
            is_memory = isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
            if is_memory and not turn.is_second_try:
                return self._try_again(turn, error)
            self._end_turn(turn)
            if is_memory:
                advice = RuntimeError(out_of_memory_advice(error, self._device))
                advice.__cause__ = error
                error = advice
            if not isinstance(error, EngineError):
                with self._log_of(turn.order.run):
                    trace = "".join(traceback.format_exception(error))
                    log.error("Run %s failed at step %s\n%s", turn.order.run, turn.step, trace)
            return Failed(error, is_disk_trouble(error))
        except BaseException:
            self._end_turn(turn)
            raise

    def hurry(self) -> None:
        """Make whoever trains leave at the next place from which a resume is exact; from a signal handler, too."""
        self._is_hurried = True
        for session in tuple(self._active):
            session.hurry()

    def close(self) -> None:
        """Let go of every run, once what is being written is on the disk."""
        self._drafts.close()
        self._gangs.disband()
        self._together.disband()
        while self.sessions:
            number, session = self.sessions.popitem()
            try:
                session.close()
            except Exception as error:  # a full disk must not keep the others from being closed
                log.warning("While run %s is closed: %s: %s", number, type(error).__name__, error)
        self._prepared.clear()
        self._turns.clear()
        self._active.clear()
        self._is_hurried = False
        self._drafts = Drafts(self._tell)
        gc.unfreeze()

    # --- building -----------------------------------------------------------------------------------------------------

    def _prepare(self, order: Prepare) -> Event:
        self._upcoming = order.upcoming or self._upcoming
        try:
            if order.only_if_light and not self._is_light(order.card.spec):
                raise OpError("it is made when the chunk has ended, and the device is free.")
            return self._build(order)
        except Exception as error:
            self._give_up(order.run)
            return Refused(error)

    def _build(self, order: Prepare) -> Ready:
        order.card.paths.root.mkdir(parents=True, exist_ok=True)
        session = self.sessions[order.run] = self._make_session(
            order.card, self.shared, capture_output=self._spec.capture_output, hydra=order.hydra
        )
        self._prepared[order.run] = order
        self.shared.quotas.begin(order.spent)
        ready = session.prepare(
            order.start, checkpoint=order.checkpoint, step=order.step, is_at_boundary=order.is_at_boundary
        )
        if order.checkpoint is not None:
            session.keep_weights()
        if session.holdings is not None:
            session.holdings.before_move = lambda: self._drafts.wait(order.run)
            self.shared.memory.keep_within_host(self._movable())
        gc.freeze()  # accelerate collects garbage when a trainer begins: what other runs hold is none
        return replace(ready, rows=self.shared.fingerprints(), held=self.shared.claims.held_by(order.run))

    def _is_light(self, spec: RunSpec) -> bool:
        """Whether a run can be built beside one that is training: it brings little but an adapter."""
        if isinstance(spec, EvalSpec):
            return not wants_base(spec.evaluation) or self.shared.bases.has(spec.model)
        return isinstance(spec, TrainSpec) and spec.peft is not None and self.shared.has_bases(spec)

    def _warm(self, order: Warm) -> Event:
        try:
            self.sessions[order.run].load_weights(order.start)
            return Taken()
        except Exception as error:
            self._give_up(order.run)
            return Refused(error)

    def _give_up(self, run: int) -> None:
        self._drafts.wait(run)
        session = self.sessions.pop(run, None)
        if session is not None:
            session.close()
            gc.unfreeze()  # what it held is garbage now, for the next collection to find
        self._drafts.discard(run)
        self._prepared.pop(run, None)

    # --- training -----------------------------------------------------------------------------------------------------

    def _begin_turns(self, order: Train) -> None:
        orders = [one for one in (order, *order.beside) if one.run in self.sessions]  # who is not has been told
        self._turns = {one.run: _Turn(one, time.time()) for one in orders}
        if len(orders) > 1:
            sessions = {one.run: self.sessions[one.run] for one in orders}
            if not self._together.form(sessions):
                self._gangs.form(sessions)

    def _advance(self, turn: _Turn) -> Event | None:
        order = turn.order
        if turn.trouble is not None:
            raise turn.trouble
        if not turn.has_begun:
            self._drafts.wait(order.run)  # nothing of it may change while it is written
            if self._drafts.is_lost:  # what would be trained now could not be saved either
                self._end_turn(turn)
                return None
            if not turn.is_second_try:
                turn.started = time.time()
            if turn.is_to_build:
                turn.is_to_build = False
                return self._build_again(order, turn.checkpoint)
            self._begin(turn)
            if order.run in self._together:
                self._together.ask(order.run)
                return None  # the others ask, too, before anybody waits for an answer
        session = self.sessions[order.run]
        if order.run in self._gangs:
            pause = self._gangs.go_on(order.run, session)
            if pause is None:
                return None  # it waits for the others
        else:
            pause = session.advance()
        assert not isinstance(pause, Ready)
        turn.step = pause.step
        if isinstance(pause, Boundary) and pause.step > order.done:
            return self._come_to(turn, session, pause)
        if isinstance(pause, Progress) and pause.can_checkpoint and (self._is_hurried or pause.paused):
            self._end_turn(turn)
            return replace(pause, is_left=True)
        return pause  # a boundary that lies behind is tried again: the last checkpoint was before it

    def _begin(self, turn: _Turn) -> None:
        session = self.sessions[turn.order.run]
        self._upcoming = turn.order.upcoming
        self._active.append(session)
        turn.switched = session.context.switch_seconds
        turn.has_begun = True
        if turn.order.environ:
            session.context.give(turn.order.environ)
        self._make_room(session)
        if self._is_hurried:
            session.hurry()

    def _come_to(self, turn: _Turn, session: Session, boundary: Boundary) -> Event:
        if boundary.has_nan and self._spec.on_nan == "fail":
            turn.trouble = ArithmeticError(f"the loss or a weight is NaN at step {boundary.step} (engine.on_nan=fail)")
            return Progress(boundary.step, boundary.logs)
        self.shared.memory.observe()
        switch = max(0.0, session.context.switch_seconds - turn.switched)
        own = self._gangs.seconds(turn.order.run)
        boundary = replace(boundary, started=turn.started, ended=time.time(), own=own, switch=switch)
        if isinstance(boundary, Finished) or not turn.order.is_saved:
            session.keep_weights()
        else:
            try:
                self._drafts.begin(self._prepared[turn.order.run].card, session, boundary.step)
            except Exception as error:
                self._end_turn(turn)
                return Unsaved(f"the checkpoint of run {turn.order.run}", error)
        self._end_turn(turn)
        return boundary

    def _try_again(self, turn: _Turn, error: BaseException) -> Event:
        """Free what can be freed; the run goes on from its last checkpoint."""
        run = turn.order.run
        self._leave(run)
        with self._log_of(run):
            log.warning("Out of memory at step %s", turn.step, exc_info=error)
        order = self._prepared[run]
        spec = order.card.spec
        recomputes = isinstance(spec, TrainSpec) and spec.chooses_activations and not order.card.recomputes
        more = ", and with its activations recomputed" if recomputes else ""
        log.warning("Run %s is out of memory and is tried once more with what could be freed%s", run, more)
        if recomputes:
            self._prepared[run] = replace(order, card=replace(order.card, recomputes=True))
        turn.is_second_try, turn.has_begun = True, False
        turn.checkpoint = checkpoints_of(order.card).newest()
        turn.is_to_build = True
        return Again(turn.checkpoint.step if turn.checkpoint else 0, recomputes)

    def _end_turn(self, turn: _Turn) -> None:
        self._leave(turn.order.run)
        self._turns.pop(turn.order.run, None)

    def _leave(self, run: int) -> None:
        """Take note that a run does not train now."""
        self._gangs.remove(run)
        self._together.remove(run)
        session = self.sessions.get(run)
        self._active = [one for one in self._active if one is not session]

    def _log_of(self, run: int) -> contextlib.AbstractContextManager[None]:
        """Let what is logged inside stand in the run's own log, if it still has one."""
        session = self.sessions.get(run)
        return contextlib.nullcontext() if session is None else session.context.active()

    def _build_again(self, turn: Train, checkpoint: Checkpoint | None) -> Ready:
        """Build a run anew from its checkpoint, on a device that has been cleared of everything else."""
        run, order = turn.run, self._prepared[turn.run]
        self._give_up(run)
        for holdings in self._suspended():
            holdings.leave_device()
        free_memory(self._device)
        path = checkpoint.path if checkpoint else None
        step = checkpoint.step if checkpoint else 0
        # Clones start from its last boundary, whose weights nothing may take the place of: the checkpoint may be of
        # an earlier one, or of the middle of a chunk.
        at_boundary = checkpoint is not None and step == turn.done
        return self._build(replace(order, checkpoint=path, step=step, is_at_boundary=at_boundary))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save_now(self, order: SaveNow) -> list[Event]:
        try:
            self._drafts.wait(order.run)
            session = self.sessions[order.run]
            if session.holdings is not None:
                session.holdings.move_to(Tier.DEVICE)
            self._drafts.begin(self._prepared[order.run].card, session, order.step)
        except Exception as error:
            return [Unsaved(f"the checkpoint of run {order.run}", error)]
        self._drafts.commit(order)
        self._drafts.wait(order.run)
        return []

    # --- memory -------------------------------------------------------------------------------------------------------

    def _make_room(self, session: Session) -> None:
        """Bring what a run holds to the device, and the next one nearer."""
        assert session.holdings is not None
        others = self._movable()
        beside = [one.holdings for one in self._active if one is not session and one.holdings is not None]
        self.shared.memory.make_room(session.holdings, others, beside)
        # Never a stopped run: what it left to the disk would be in memory again, and stay there.
        if len(self._upcoming) > 1 and others:
            self.shared.memory.fetch_ahead(session.holdings, others, beside)

    def _leave_device(self, order: LeaveDevice) -> None:
        """Move what a run holds off the device, and off the host where that is full."""
        self._upcoming = order.upcoming
        holdings = self.sessions[order.run].holdings
        assert holdings is not None
        holdings.leave_device()
        self.shared.memory.keep_within_host(self._suspended())

    def _suspended(self) -> list[RunTensors]:
        """The holdings of all runs that are prepared, soonest needed first, stopped ones last."""
        numbers = [*self._upcoming, *(number for number in self.sessions if number not in self._upcoming)]
        sessions = [self.sessions[number] for number in numbers if number in self.sessions]
        return [session.holdings for session in sessions if session.holdings is not None]

    def _movable(self) -> list[RunTensors]:
        """The same, less those of the runs that train."""
        training = {id(session.holdings) for session in self._active}
        return [held for held in self._suspended() if id(held) not in training]


def _sharers(spec: ExperimentSpec, kind: str) -> int:
    """Return how many workers have the memory of a kind of device: each GPU has its own, and all CPUs the same."""
    return spec.devices if kind == "cpu" and isinstance(spec.devices, int) else 1
