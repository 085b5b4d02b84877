"""Ops on their way from the control directory to the runs: planned whole, applied in order, answered once."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rfflow.checkpointing.experiment_file import OpOutcome, SavedExperiment
from rfflow.confidential import redacted
from rfflow.control.admission import as_the_experiment
from rfflow.control.filing import maker_of
from rfflow.control.inbox import Inbox
from rfflow.control.items import Identity, Item
from rfflow.control.journal import Entry, Journal, moment
from rfflow.control.ops import Clone, Op
from rfflow.control.selection import Numbers, Ranked
from rfflow.control.status import RunStatus, Status, StatusFile
from rfflow.engine.planning import Plan, Step, apply
from rfflow.errors import OpError
from rfflow.policies.runner import Imagined, PolicyRunner, stamp
from rfflow.policies.scene import Decision
from rfflow.runs.run import Run

if TYPE_CHECKING:
    from rfflow.engine.lifecycle import Lifecycle


log = logging.getLogger(__name__)

_LAST_CALL = 2.0
"""Seconds, at most, that the end of an experiment waits for a file that is still being written."""


class Steering:
    """Answers the ops of one experiment, at moments when every run is at a boundary of its own."""

    def __init__(self, lifecycle: Lifecycle, before: SavedExperiment | None = None, imagined: Sequence[Imagined] = ()):
        """Take the control directory.

        Args:
            lifecycle: whose runs are steered.
            before: what a process that is gone has left.
            imagined: what :attr:`imagined` was when this was asked last, in this process or another.
        """
        spec, paths = lifecycle.experiment.spec.control, lifecycle.experiment.paths
        self.directory = Path(spec.dir) if spec.dir else paths.control
        self._lifecycle = lifecycle
        self._idle_timeout = spec.idle_timeout
        self._idle_until: float | None = None
        self._is_idle = False
        self._last_call: float | None = None
        self._inbox = Inbox(self.directory, paths.root, polling=spec.polling) if spec.enabled else None
        self._journal = Journal(paths.ops)
        self._status = StatusFile(self.directory)
        self._answered: dict[tuple[str, str], list[Entry]] = {}
        """What a process that is gone has answered, by file and stamp."""
        self._untold: list[Entry] = []
        """What a process that is gone has applied, and not come to tell."""
        self._unwritten: tuple[Entry, ...] = ()
        """What should be in the journal and found no room there."""
        self._looked_at: set[Identity] = set()
        """Files that were looked at in the middle of this chunk."""
        self.held: set[int] = set()
        """Runs that get no slot now, because an op on them waits for others."""
        self._named: set[int] = set()
        """Runs that an op could name that waits."""
        self._decisions: list[Decision] = []
        """What the policy has asked for, and waits."""
        if before is not None:
            self._go_on(before.answer)
        node = lifecycle.experiment.spec.policy
        try:
            self._pilot = PolicyRunner(node, lifecycle.experiment, self._journal.read(), imagined) if node else None
        except BaseException:
            self.close()
            raise

    @property
    def imagined(self) -> Sequence[Imagined]:
        """What the policy would have done in a dry run."""
        return () if self._pilot is None else self._pilot.imagined

    @property
    def read_metrics(self) -> Mapping[str, str]:
        """The metrics that the policy reads by name, and what in it does."""
        return {} if self._pilot is None else self._pilot.reads

    def take_ops(self, is_training: Callable[[Run], bool]) -> None:
        """Apply or refuse every op that has come, those of people before those of the policy.

        An op waits until each run that it could name is at a boundary of its own; until then those that are get no
        slot (:attr:`held`), nor does a later op on any of them overtake it. One that ranks runs waits until all of them
        have had as many turns, where several train at once: else the metrics of an early chunk would be compared with
        those of a later one.

        Args:
            is_training: whether a run is in the middle of a chunk.
        """
        while self._untold:  # here every run is where it was when they were applied
            entry = self._untold.pop(0)
            self._tell([entry], _person(entry.file or "") if entry.by == "person" else entry.by)
        self.held, self._named = set(), set()
        if self._inbox is not None:
            self._take_files(self._inbox, is_training)
        if self._pilot is not None:
            waiting = self._decisions or self._pilot.decide()
            self._decisions = []
            for decision in waiting:
                if self._must_wait([decision.op], is_training):
                    self._decisions.append(decision)
                else:
                    self._follow(decision)
        self._lifecycle.cloner.forget_early()
        self._looked_at.clear()

    def _take_files(self, inbox: Inbox, is_training: Callable[[Run], bool]) -> None:
        for item in inbox.scan():
            if self._was_answered(item):
                continue
            if self._must_wait(item.ops, is_training):
                inbox.put_back(item)
            elif self._answer(item):
                self._is_idle, self._last_call = False, None

    def show(self) -> None:
        """Write how the runs stand, and who trains where, for people to see."""
        self._write_status()

    def _must_wait(self, ops: Sequence[Op], is_training: Callable[[Run], bool]) -> bool:
        runs = self._lifecycle.experiment.runs
        named: set[int] = set()
        for op in ops:
            if isinstance(op.target, Numbers):
                named.update(op.target.numbers)
            else:  # whichever it comes to mean, all must have reached the same look
                named.update(run.number for run in runs if run.state.is_live)
        is_ranking = self._lifecycle.experiment.slots > 1 and any(isinstance(op.target, Ranked) for op in ops)
        ahead = named & self._lifecycle.leading() if is_ranking else set()
        is_behind_another = bool(named & self._named)
        if not (is_behind_another or ahead or any(run.number in named and is_training(run) for run in runs)):
            return False
        self._named |= named
        if not is_behind_another:  # else the other says who stands still: it may wait for some that this one names
            self.held |= ahead if is_ranking else named
        return True

    def look_ahead(self, training: Run) -> None:
        """Make the clones that will be asked for when this chunk ends, as far as that can be known in its middle.

        Nothing is answered by it, and nothing applied: :meth:`take_ops` will read the files again.
        """
        for item in self._inbox.peek(self._looked_at) if self._inbox is not None else ():
            self._looked_at.add(item.identity)
            is_new = (item.name, item.identity.stamp) not in self._answered
            if is_new and any(isinstance(op, Clone) for op in item.ops):
                with contextlib.suppress(OpError):  # the reason will be found again, and told
                    Plan(self._lifecycle, training).of(item.ops)

    def is_awaited(self, run: Run) -> bool:
        """Whether a stopped run waits for a person: one that the policy has stopped waits for nobody."""
        return self._inbox is not None and (self._pilot is None or not self._pilot.stopped(run))

    def wait(self) -> bool:
        """Sleep until there may be an op; return False when ``control.idle_timeout`` has passed without one."""
        if not self._is_idle:
            self._is_idle = True
            self._write_status()
            self._lifecycle.tell("on_wait", control=self.directory, timeout=self._idle_timeout)
            self._idle_until = None if self._idle_timeout is None else time.monotonic() + self._idle_timeout
        left = None if self._idle_until is None else self._idle_until - time.monotonic()
        assert self._inbox is not None
        if left is not None and left <= 0:
            return self.wait_for_young_files()
        self._inbox.wait(left)
        return True

    def wait_for_young_files(self) -> bool:
        """Give a file that came in the last moment the time to be written; return whether there is one."""
        if self._inbox is None:
            return False
        if self._inbox.has_news():  # it came while the ops of others were applied, which may take long
            return True
        if not self._inbox.has_young_files:
            return False
        if self._last_call is None:
            self._last_call = time.monotonic() + _LAST_CALL
        if time.monotonic() >= self._last_call:
            return False
        self._inbox.wait(_LAST_CALL)
        return True

    def close(self) -> None:
        """Give the control directory back."""
        self._is_idle = False
        if self._unwritten:
            self._write_journal()
        self._write_status()
        if self._inbox is not None:
            self._inbox.close()

    # --- one file -----------------------------------------------------------------------------------------------------

    def _answer(self, item: Item) -> bool:
        """Apply the ops of a file, or none of them; return whether they were applied."""
        assert self._inbox is not None
        try:
            if item.error is not None:
                raise item.error
            steps = Plan(self._lifecycle).of(item.ops)
        except OpError as error:
            reason = redacted(str(error))
            self._note(OpOutcome(item.name, item.identity.stamp, tuple(self._refusals(item, reason))))
            self._inbox.reject(item, reason)
            return False
        entries = self._apply(steps, "person", item.name, item.identity.stamp, source=_person(item.name))
        self.show()  # whoever reads the answer may look at the status next
        self._inbox.done(item, "\n".join(entry.detail for entry in entries))
        return True

    def _follow(self, decision: Decision) -> None:
        """Apply an op of the policy as one of a person, or refuse it."""
        assert self._pilot is not None
        by, op = self._pilot.by(decision), decision.op
        file, moment = f"({by})", f"{os.getpid()}:{time.time_ns()}"
        try:
            with as_the_experiment():
                steps = Plan(self._lifecycle).of([op])
        except OpError as error:
            if self._pilot.refuse(decision, str(error)):
                log.warning("Refused an op of %s: %s", by, error)
                entries = [Entry(op.verb, None, "refused", str(error), by, file, stamp(decision))]
                self._note(OpOutcome(file, stamp(decision), tuple(entries)))
            return
        self._apply(steps, by, file, moment, source=by, why=f" {_sentence(decision.why)}")

    def _apply(
        self, steps: Sequence[Step], by: str, file: str, stamp: str, *, source: str, why: str = ""
    ) -> list[Entry]:
        """Apply the steps of a file or of a policy, and answer for good."""
        slots = [self._lifecycle.slot_of(step.run) for step in steps]  # a deleted run will be nowhere
        entries = [
            Entry(
                step.op.verb,
                step.run,
                "applied",
                f"{detail}{why}",
                by,
                file,
                stamp,
                step.chunk,
                clone=step.clone,
                is_warm=step.is_warm,
                slot=slot,
            )
            for (step, detail), slot in zip(apply(steps), slots, strict=True)
        ]
        self._note(OpOutcome(file, stamp, tuple(entries)))
        self._tell(entries, source)
        return entries

    def _tell(self, entries: Sequence[Entry], source: str) -> None:
        for entry in entries:
            assert entry.run is not None
            run = self._lifecycle.experiment.run(entry.run)
            self._lifecycle.tell("on_op", run=run, text=f"{entry.detail} ({source}, after chunk {entry.chunk})")

    def _go_on(self, answer: OpOutcome | None) -> None:
        """Take over from a process that is gone: what it had answered is not answered again."""
        entries = self._journal.read()
        if answer is not None:
            missing = [entry for entry in answer.entries if entry not in entries]
            self._journal.append(*missing)
            entries += missing
            self._untold = [entry for entry in missing if entry.outcome == "applied"]
        for entry in entries:
            if entry.file is not None and entry.stamp is not None:
                self._answered.setdefault((entry.file, entry.stamp), []).append(entry)

    def _was_answered(self, item: Item) -> bool:
        """File an item away that was answered by a process that died before it could do so."""
        assert self._inbox is not None
        entries = self._answered.pop((item.name, item.identity.stamp), None)
        if entries is None:
            return False
        text = "\n".join(entry.detail for entry in entries)
        if any(entry.outcome == "applied" for entry in entries):
            self._inbox.done(item, text)
        else:
            self._inbox.reject(item, entries[0].detail)
        return True

    def _note(self, answer: OpOutcome) -> None:
        if self._pilot is not None:
            self._pilot.note(answer.entries)
        # First the experiment's own state: from here on the ops are applied, whatever happens. A process that goes on
        # adds the lines that are missing, those among them that found no room before.
        answer = replace(answer, entries=(*self._unwritten, *answer.entries))
        self._lifecycle.save(answer)
        self._unwritten = answer.entries
        self._write_journal()

    def _write_journal(self) -> None:
        try:
            self._journal.append(*self._unwritten)
        except OSError as error:  # a full disk must not end the training; the answer beside the file says the same
            log.error("Cannot write %s: %s", self._journal.path, error)
        else:
            self._unwritten = ()

    def _refusals(self, item: Item, reason: str) -> list[Entry]:
        if not item.ops:
            return [Entry("unknown", None, "refused", reason, file=item.name, stamp=item.identity.stamp)]
        return [Entry(op.verb, None, "refused", reason, file=item.name, stamp=item.identity.stamp) for op in item.ops]

    def _write_status(self) -> None:
        if self._inbox is None:
            return
        experiment = self._lifecycle.experiment
        places = {run.number: place for place, run in enumerate(experiment.ranked(), start=1)}
        runs = tuple(_status(run, places[run.number]) for run in experiment.runs)
        status = Status(str(experiment.paths.root), runs, waiting=self._is_idle, slots=experiment.slots)
        self._status.write(status)


def _person(file: str) -> str:
    return maker_of(file) or f"person, {file}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _status(run: Run, rank: int) -> RunStatus:
    trained = run.chunks[-1].slot if run.chunks else None
    return RunStatus(
        slot=trained if run.turn is None else run.turn.slot,
        since=None if run.turn is None else moment(run.turn.since),
        number=run.number,
        state=run.state.value,
        overrides=run.overrides,
        chunk=len(run.chunks),
        chunks=len(run.plan) if run.plan is not None else None,
        step=run.step,
        steps=run.plan.steps if run.plan is not None else None,
        metrics=run.metrics,
        parent=run.parent,
        chunks_before=run.chunks_before,
        rank=rank,
        activations=None if run.activations is None else str(run.activations),
        activations_why=None if run.activations is None else run.activations.why,
    )
