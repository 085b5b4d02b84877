"""A worker whose runs count, for tests of the way there and back: without torch, so that its process starts quickly.

What a run has counted stands in its checkpoints and, at its end, in a file, so that whoever compares the files of two
experiments compares what a trainer would have trained.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rfflow.checkpointing.checkpoints import Checkpoints, Draft
from rfflow.config.claims import Claim, Held
from rfflow.config.spec import ExperimentSpec
from rfflow.runs.chunks import ChunkPlan
from rfflow.runs.events import (
    Boundary,
    Command,
    Commit,
    Event,
    Failed,
    Finished,
    GiveUp,
    Prepare,
    Progress,
    Ready,
    Refused,
    Saved,
    SaveNow,
    Train,
)
from rfflow.runs.run import RunCard

STEPS_A_CHUNK = 3


def leave_a_child(pids: Path) -> None:
    """Fork a process, as libraries do, that outlives this one and holds all open that is open here; note its number."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    with pids.open("a") as file:
        file.write(f"{child} ")


class Count:
    """One run: a number that every step changes in a way that nothing else would."""

    def __init__(self, card: RunCard, step: int, value: int):
        self.card = card
        self.step = step
        self.value = value

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.card.paths.checkpoints, self.card.owner)

    def take_step(self) -> None:
        self.step += 1
        self.value = (self.value * 6364136223846793005 + self.step) % 2**64


def _is_to_hang(card: RunCard, where: str) -> bool:
    """Whether a run is to hang there: the first time, if it is wanted."""
    marker = card.paths.root / "has_hung"
    if card.spec.config.get("hangs") != where or marker.exists():
        return False
    marker.touch()
    return True


class CountingWorker:
    """Does what :class:`rfflow.worker.worker.Worker` is told, with runs that count."""

    device = "toy"

    def __init__(self, spec: ExperimentSpec, tell: Callable[[int | None, Event], None]):
        if os.environ.get("TOY_IS_BROKEN") == "exits":
            os._exit(3)
        if "TOY_IS_BROKEN" in os.environ:
            raise RuntimeError("no driver for this toy")
        if "TOY_FORKS" in os.environ:
            leave_a_child(Path(os.environ["TOY_FORKS"]))
        self._counts: dict[int, Count] = {}
        self._drafts: dict[int, Draft] = {}
        self._stuck: set[int] = set()
        self._hurry = threading.Event()
        self._turns: dict[int, Iterator[Event]] = {}

    def do(self, command: Command) -> list[Event]:
        match command:
            case Prepare():
                return [self._prepare(command)]
            case Train():
                self._turns = {one.run: self._train(one) for one in (command, *command.beside)}
            case Commit() | SaveNow():
                if _is_to_hang(self._counts[command.run].card, "write"):
                    self._stuck.add(command.run)
                if command.run in self._stuck:
                    return []  # as a thread does that waits for a disk, while its process goes on
                return [self._save(command)]
            case GiveUp(run):
                self._counts.pop(run, None)
        return []

    def advance(self) -> tuple[int, Event] | None:
        while self._turns:
            run, turn = next(iter(self._turns.items()))
            if (event := next(turn, None)) is not None:
                return run, event
            del self._turns[run]
        return None

    def hurry(self) -> None:
        self._hurry.set()

    def close(self) -> None:
        self._counts.clear()

    def _prepare(self, order: Prepare) -> Event:
        settings: dict[str, Any] = dict(order.card.spec.config)
        if settings.get("breaks") == "config":
            return Refused(ValueError(f"run {order.run} cannot be built"))
        if settings.get("breaks") == "process":
            os._exit(7)
        if _is_to_hang(order.card, "build"):
            signal.pause()
        step, value = 0, order.run
        if order.checkpoint is not None:
            step, value = json.loads((order.checkpoint / "count.json").read_text())
        self._counts[order.run] = Count(order.card, step, value)
        chunks = order.card.spec.chunks
        plan = ChunkPlan(tuple(STEPS_A_CHUNK * (n + 1) for n in range(chunks)), chunks)
        claims = tuple(Claim("folder", name, f"both write to {name}.") for name in settings.get("claims", ()))
        return Ready(plan, rows={"toy": "rows"}, held=Held(claims))

    def _train(self, turn: Train) -> Iterator[Event]:
        count = self._counts[turn.run]
        chunks = count.card.spec.chunks
        while count.step <= turn.done or count.step % STEPS_A_CHUNK:
            if count.card.spec.config.get("exits_at") == count.step // STEPS_A_CHUNK:
                os._exit(7)
            if count.card.spec.config.get("fails_at") == count.step // STEPS_A_CHUNK:
                yield Failed(RuntimeError("the toy broke"))
                return
            count.take_step()
            logs = ((count.step, {"loss": float(count.value % 1000)}),)
            if count.step % STEPS_A_CHUNK:
                is_left = self._hurry.is_set()
                yield Progress(count.step, logs, can_checkpoint=True, is_left=is_left)
                if is_left:
                    return
            elif count.step <= turn.done:
                yield Progress(count.step, logs)
        metrics = {"eval_loss": float(count.value % 11)}
        if count.step == STEPS_A_CHUNK * chunks:
            count.card.paths.root.joinpath("final").write_text(str(count.value))
            yield Finished(count.step, logs, metrics)
        else:
            if turn.is_saved:
                self._drafts[turn.run] = self._draft(count)
            yield Boundary(count.step, logs, metrics)

    def _draft(self, count: Count) -> Draft:
        draft = count.checkpoints.begin(count.step)
        (draft.folder / "count.json").write_text(json.dumps([count.step, count.value]))
        return draft

    def _save(self, order: Commit | SaveNow) -> Event:
        count = self._counts[order.run]
        draft = self._drafts.pop(order.run, None) or self._draft(count)
        count.checkpoints.seal(draft, order.progress)
        count.checkpoints.keep_only(set(order.keep))
        return Saved(draft.step)
