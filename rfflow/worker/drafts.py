"""Checkpoints on their way from the runs of a device to the disk, written in a thread of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rfflow.checkpointing.checkpoints import Checkpoints, Draft, sync
from rfflow.checkpointing.writer import Writer
from rfflow.runs.events import Commit, Event, Saved, SaveNow, Unsaved
from rfflow.runs.run import RunCard
from rfflow.worker.session import Session

Tell = Callable[[int | None, Event], None]
"""Takes the number of a run and what is told of it, from any thread."""


def checkpoints_of(card: RunCard) -> Checkpoints:
    """Return where a run's checkpoints are."""
    return Checkpoints(card.paths.checkpoints, card.owner)


@dataclass(frozen=True)
class _Begun:
    """A checkpoint whose state has been taken, and which is not written yet."""

    checkpoints: Checkpoints
    draft: Draft
    write: Callable[[], None]
    metrics: Path


class Drafts:
    """The checkpoints that are begun and not sealed.

    Args:
        tell: hears of each whether it is on the disk, from the thread that writes.
    """

    def __init__(self, tell: Tell):
        self._tell = tell
        self._writer = Writer()
        self._begun: dict[int, _Begun] = {}
        self.is_lost = False
        """Whether a checkpoint could not be written."""

    def begin(self, card: RunCard, session: Session, step: int) -> None:
        """Take the state of a run as it stands; :meth:`commit` writes it."""
        checkpoints = checkpoints_of(card)
        draft = checkpoints.begin(step)
        try:
            write = session.snapshot(draft.folder)
        except BaseException:
            checkpoints.discard(draft)  # a full disk needs the room
            raise
        self._begun[card.number] = _Begun(checkpoints, draft, write, card.paths.metrics)

    def commit(self, order: Commit | SaveNow) -> None:
        """Have the checkpoint written that was begun of a run; what comes of it is told."""
        begun = self._begun.pop(order.run)

        def finish() -> None:
            try:
                self._write(begun, order)
            except BaseException as error:
                self.is_lost = True
                self._tell(order.run, Unsaved(f"the checkpoint of run {order.run}", error))
            else:
                self._tell(order.run, Saved(begun.draft.step))

        self._writer.submit(order.run, finish)

    def discard(self, run: int) -> None:
        """Forget what was begun of a run."""
        if (begun := self._begun.pop(run, None)) is not None:
            begun.checkpoints.discard(begun.draft)

    def wait(self, run: int) -> None:
        """Wait until what is being written of a run is on the disk."""
        self._writer.wait(run)

    def wait_for_all(self) -> None:
        """Wait until nothing is being written."""
        self._writer.wait_for_all()

    def close(self) -> None:
        """Wait for the last; what goes wrong is told and not raised."""
        self._writer.close()

    @staticmethod
    def _write(begun: _Begun, order: Commit | SaveNow) -> None:
        try:
            begun.write()
            if begun.metrics.exists():
                sync(begun.metrics)  # who goes on from the checkpoint will not log it again
            begun.checkpoints.seal(begun.draft, order.progress)
        except BaseException:
            begun.checkpoints.discard(begun.draft)
            raise
        begun.checkpoints.keep_only(set(order.keep))
