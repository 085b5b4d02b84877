"""Clones on their way into an experiment: composed and built whole before anybody knows of them.

Composing and building takes longer than anything else that an op asks for. Where the op comes while a chunk is going,
its clones are made between two steps of that chunk, so that they are there when it ends. That decides nothing: at the
boundary the op is read and planned as if it had just come, and a clone that was made early is taken only if it is what
is asked for then, to the last detail. Otherwise it is thrown away and made anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.errors import HydraException

from rfflow.checkpointing.disk import is_disk_trouble, link_or_copy, unsaved
from rfflow.config.spec import EvalSpec, RunSpec
from rfflow.errors import EngineError, OpError, WorkerError
from rfflow.runs import places
from rfflow.runs.events import Ready, WarmStart
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run

log = logging.getLogger(__name__)


class Composer(Protocol):
    """Makes the configuration of a clone; the launcher's is Hydra itself."""

    def compose_clone(
        self, parent: Run, overrides: tuple[str, ...], number: int, directory: Path
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        """Return the clone's spec, the overrides that set it apart, and its ``HydraConfig``.

        Hydra writes into the directory what it writes of a job.

        Raises:
            HydraException: if the overrides do not compose; ``ConfigError`` is one.
        """
        ...


class Builder(Protocol):
    """Has the trainers of runs made, where there is room."""

    def enrol(self, run: Run, hydra: Any) -> None:
        """Take a run in; nothing of it is built yet."""
        ...

    def prepare(self, run: Run, start: WarmStart | None = None, *, only_if_light: bool = False) -> Ready:
        """Build a run up to its first step."""
        ...

    def warm(self, run: Run, start: WarmStart) -> None:
        """Give a run that was built its parent's newest weights."""
        ...

    def give_up(self, run: Run) -> None:
        """Let go of what was built, or of the part of it that was."""
        ...

    def wait_for_weights(self, run: Run) -> None:
        """Wait until the weights that a run had at its last boundary are in their file, and see that they are its own.

        Raises:
            ConfigError: if they are another run's.
        """
        ...


@dataclass(frozen=True)
class _Order:
    """All that makes one clone another."""

    parent: int
    overrides: tuple[str, ...]
    number: int
    place: int | None
    """The chunk of the parent's epoch that comes next; ``None`` without a warm start."""


class Cloner:
    """Makes the clones of one experiment."""

    def __init__(self, experiment: Experiment, composer: Composer | None, builder: Builder):
        self._experiment = experiment
        self._composer = composer
        self._builder = builder
        self._early: dict[int, tuple[_Order, Run]] = {}

    @property
    def early(self) -> list[Run]:
        """The clones that are there before their op has been taken."""
        return [run for _, run in self._early.values()]

    def make(self, parent: Run, overrides: tuple[str, ...], number: int, *, warm_start: bool) -> Run:
        """Build a clone up to its first step, or take the one that was built early.

        Raises:
            OpError: if it cannot be made; nothing is left of it then.
        """
        run = self._made(parent, overrides, number, warm_start=warm_start)
        goes_on = warm_start and not run.is_evaluation
        run.chunks_before = parent.chunks_before + len(parent.chunks) if goes_on else 0
        return run

    def _made(self, parent: Run, overrides: tuple[str, ...], number: int, *, warm_start: bool) -> Run:
        order = _Order(parent.number, overrides, number, _place(parent, len(parent.chunks)) if warm_start else None)
        early, run = self._early.pop(number, (None, None))
        if run is not None and early != order:
            self.drop(run)
            run = None
        if run is None:
            return self._make(parent, order)
        if order.place is not None:
            with self._refusing(run, parent):
                # The parent has trained on since; nothing before the first step depends on the weights' values.
                self._builder.warm(run, self._start(run, parent, order.place))
        return run

    def make_early(
        self, parent: Run, overrides: tuple[str, ...], number: int, *, warm_start: bool, training: Run
    ) -> Run:
        """Build a clone that will be asked for at the end of the chunk that is going.

        Args:
            parent: whose clone it is.
            overrides: on top of the parent's.
            number: the clone's.
            warm_start: whether it starts from the parent's weights.
            training: the run in the middle of its chunk.

        Raises:
            OpError: if it cannot be made, or not now.
        """
        if parent not in self._experiment.runs:
            raise OpError(f"run {parent.number} is a clone that was made early itself, and may yet be thrown away.")
        done = len(parent.chunks) + (parent is training)
        order = _Order(parent.number, overrides, number, _place(parent, done) if warm_start else None)
        try:
            run = self._make(parent, order, early=True)
        except EngineError as error:  # a full disk, say: what comes at the boundary will tell
            raise OpError(str(error)) from error
        self._early[number] = order, run
        return run

    def forget_early(self) -> None:
        """Throw away what was made early and not asked for."""
        for run in self.early:
            self.drop(run)

    def drop(self, run: Run) -> None:
        """Leave nothing of a clone that does not take part."""
        self._early.pop(run.number, None)
        if (withdraw := getattr(self._composer, "withdraw", None)) is not None:
            withdraw(run.number)
        self._builder.give_up(run)
        with contextlib.suppress(OSError):  # what cannot be removed stays; the next clone gets another place
            places.remove(run.paths.root)

    def _make(self, parent: Run, order: _Order, *, early: bool = False) -> Run:
        if self._composer is None:
            raise OpError("This experiment cannot compose clones: it was not started from a Hydra configuration.")
        place = places.place_for_clone(self._experiment, order.number, self.early)
        run = Run(order.number, parent.spec, (), RunPaths(place), parent=parent.number)
        with self._refusing(run, parent):
            places.make(place)
            run.spec, run.overrides, hydra = self._composer.compose_clone(parent, order.overrides, order.number, place)
            run.is_evaluation = isinstance(run.spec, EvalSpec)
            start = None if order.place is None else self._start(run, parent, order.place)
            run.is_warm, run.first_chunk = start is not None, start.first_chunk if start else 0
            self._builder.enrol(run, hydra)
            ready = self._builder.prepare(run, start, only_if_light=early)
            run.plan, run.activations = ready.plan, ready.activations
        return run

    def _start(self, run: Run, parent: Run, place: int) -> WarmStart:
        self._builder.wait_for_weights(parent)
        if not parent.paths.weights.is_file():
            raise OpError(
                f"run {parent.number} has not reached a chunk boundary yet, so it has no weights to start from."
            )
        link_or_copy(parent.paths.weights, run.paths.start)
        # The place in the clone's chunks, where the two cut the epoch differently.
        return WarmStart(parent.number, run.paths.start, place * run.spec.chunks // parent.spec.chunks)

    @contextlib.contextmanager
    def _refusing(self, run: Run, parent: Run) -> Iterator[None]:
        """Turn whatever is wrong with a clone into a refusal, and leave nothing of it."""
        try:
            yield
        except (OSError, HydraException) as error:  # ours, and those of composing
            self.drop(run)
            self._check_disk(run, error)
            kind = f"{error.kind}: " if isinstance(error, WorkerError) else ""
            raise OpError(f"Cannot clone run {parent.number}: {kind}{error}") from error
        except Exception as error:  # a library's, which may be any: the runs that train must not end by it
            log.exception("Cannot clone run %s", parent.number)
            self.drop(run)
            self._check_disk(run, error)
            reason = " ".join(str(error).split()) or "no message"
            raise OpError(f"Cannot clone run {parent.number}: {type(error).__name__}: {reason}") from error
        except BaseException:
            self.drop(run)
            raise

    def _check_disk(self, run: Run, error: Exception) -> None:
        if isinstance(error, EngineError):
            raise error
        if is_disk_trouble(error):  # the op is not at fault: it is applied once the experiment goes on
            raise unsaved(f"run {run.number}, a clone", error, self._experiment.paths.root) from error


def _place(parent: Run, chunks_done: int) -> int:
    """Return the chunk of the parent's epoch that comes after so many of its own."""
    return (parent.first_chunk + chunks_done) % parent.spec.chunks
