"""The trainers of the runs: made, prepared, held within the limits of memory, built again, let go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from rfflow.checkpointing.checkpointer import Keeper
from rfflow.config.spec import RunSpec
from rfflow.runs.chunks import ChunkPlan
from rfflow.runs.events import Ready, WarmStart
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run
from rfflow.worker.memory.memory import free_memory
from rfflow.worker.memory.offload import Holdings
from rfflow.worker.shared import Workshop
from rfflow.worker.training.session import Trainee

log = logging.getLogger(__name__)


class Roster:
    """The runs of one experiment that have a trainer, and whose turn on the device it is."""

    def __init__(
        self,
        experiment: Experiment,
        fabric: Fabric,
        keeper: Keeper,
        upcoming: Callable[[], Sequence[int]],
        make_trainee: Callable[..., Trainee] = Trainee,
    ):
        """Hold nobody yet.

        Args:
            experiment: whose runs these are.
            fabric: which has the device.
            keeper: which writes what runs hold, and must have done so before anything of it moves.
            upcoming: returns the numbers of the runs that will train, the next one first.
            make_trainee: called as :class:`Trainee` is.
        """
        spec = experiment.spec
        self.workshop = Workshop(fabric, spec.memory, spec.seed, keeper.owner)
        self.workshop.memory.suspended = self._movable
        self.trainees: dict[int, Trainee] = {}
        """By the numbers of their runs."""
        self.active: Trainee | None = None
        """Whoever has the device."""
        self._capture_output = spec.capture_output
        self._device = fabric.device
        self._keeper = keeper
        self._upcoming = upcoming
        self._make_trainee = make_trainee
        self._hydra: dict[int, Any] = {}

    def enrol(self, run: Run, hydra: Any) -> None:
        """Take a run in; nothing of it is built yet."""
        run.paths.root.mkdir(parents=True, exist_ok=True)
        self._hydra[run.number] = hydra
        self.trainees[run.number] = self._make_trainee(
            run, self.workshop, capture_output=self._capture_output, hydra=hydra
        )

    def prepare(self, run: Run, start: WarmStart | None = None, checkpoint: Path | None = None) -> Ready:
        """Build a run up to its next step."""
        trainee = self.trainees[run.number]
        ready = trainee.prepare(start, checkpoint=checkpoint)
        if checkpoint is not None:
            trainee.keep_weights()
        if trainee.holdings is not None:
            trainee.holdings.before_move = partial(self._keeper.wait, run)
            self.workshop.memory.keep_within_host(self._movable())
        return ready

    def build(self, run: Run, hydra: Any, start: WarmStart | None) -> ChunkPlan:
        """Build a clone up to its first step."""
        self.enrol(run, hydra)
        return self.prepare(run, start).plan

    def build_again(self, run: Run, checkpoint: Path | None) -> Trainee:
        """Build a run anew from its checkpoint, on a device that has been cleared of everything else."""
        self.give_up(run)
        for holdings in self._suspended():
            holdings.leave_device()
        free_memory(self._device)
        self.enrol(run, self._hydra.get(run.number))
        start = None
        if run.paths.start.exists() and run.parent is not None:
            start = WarmStart(run.parent, run.paths.start, run.first_chunk)
        self.prepare(run, start, checkpoint)
        trainee = self.trainees[run.number]
        self.make_room(trainee)
        return trainee

    def trainee(self, run: Run) -> Trainee:
        """Return a run's trainer."""
        return self.trainees[run.number]

    def give_up(self, run: Run) -> None:
        """Let go of a run's trainer, if it has one."""
        trainee = self.trainees.pop(run.number, None)
        if trainee is not None:
            trainee.close()

    def close(self) -> None:
        """Let go of every trainer."""
        while self.trainees:
            number, trainee = self.trainees.popitem()
            try:
                trainee.close()
            except Exception as error:  # a full disk must not keep the others from being closed
                log.warning("While run %s is closed: %s: %s", number, type(error).__name__, error)

    def wait_for_weights(self, run: Run) -> None:
        """Wait until the weights that a run had at its last boundary are in their file; check that they are its own."""
        self._keeper.wait(run)
        self._keeper.check_weights(run)

    def is_light(self, spec: RunSpec) -> bool:
        """Whether a run can be built beside one that is training: it brings little but an adapter."""
        return spec.build is None and spec.peft is not None and self.workshop.has_bases(spec)

    # --- memory -------------------------------------------------------------------------------------------------------

    def make_room(self, trainee: Trainee) -> None:
        """Bring what a run holds to the device, and the next one nearer."""
        assert trainee.holdings is not None
        others = [holdings for holdings in self._suspended() if holdings is not trainee.holdings]
        self.workshop.memory.make_room(trainee.holdings, others)
        # Never a stopped run: what it left to the disk would be in memory again, and stay there.
        if len(self._upcoming()) > 1:
            self.workshop.memory.fetch_ahead(trainee.holdings, others)

    def leave_device(self, run: Run) -> None:
        """Move what a run holds off the device, and off the host where that is full."""
        holdings = self.trainees[run.number].holdings
        assert holdings is not None
        holdings.leave_device()
        self.workshop.memory.keep_within_host(self._suspended())

    def _suspended(self) -> list[Holdings]:
        """The holdings of all runs that are prepared, soonest needed first, stopped ones last."""
        upcoming = self._upcoming()
        numbers = [*upcoming, *(number for number in self.trainees if number not in upcoming)]
        trainees = [self.trainees[number] for number in numbers if number in self.trainees]
        return [trainee.holdings for trainee in trainees if trainee.holdings is not None]

    def _movable(self) -> list[Holdings]:
        """The same, less those of the run that trains while another is built."""
        return [held for held in self._suspended() if self.active is None or held is not self.active.holdings]
