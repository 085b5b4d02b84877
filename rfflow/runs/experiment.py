"""An experiment, and what callbacks hear of it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rfflow.config.spec import ExperimentSpec
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.ranking import best_first
from rfflow.runs.run import Run


@dataclass
class Experiment:
    """Everything callbacks may look at."""

    spec: ExperimentSpec
    paths: ExperimentPaths
    runs: list[Run] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    slots: int = 1
    """Devices on which its runs train at the same time."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells it from every other, wherever its directory goes."""
    given_up: int = 0
    """Those of them whose workers were lost too often."""

    def run(self, number: int) -> Run:
        """Return a run by its number.

        Raises:
            KeyError: if there is none.
        """
        for run in self.runs:
            if run.number == number:
                return run
        raise KeyError(number)

    def ranked(self) -> list[Run]:
        """Return the runs from best to worst by the objective.

        Evaluations are compared on the questions that both have had. One that was stopped knows its value only
        roughly: it comes behind those that were not.
        """
        runs = {run.number: run for run in self.runs}
        return [runs[number] for number in best_first([run.standing for run in self.runs], self.spec.objective)]

    def seconds_left(self) -> float:
        """Estimate the seconds until every live run is through, from the time of the chunks so far; NaN before any."""
        rates = {run.number: run.seconds / run.chunks[-1].step for run in self.runs if run.chunks}
        if not rates:
            return math.nan
        average = sum(rates.values()) / len(rates)
        left = [
            rates.get(run.number, average) * (run.plan.steps - run.step)
            for run in self.runs
            if run.state.is_live and run.plan is not None
        ]
        return max(sum(left) / max(1, self.slots - self.given_up), max(left, default=0.0))


class Callback:
    """The events of an experiment. Subclass it or write any class with some of these methods.

    Callbacks are named in the ``callbacks`` config group by ``_target_`` and called through ``Fabric.call``, which
    passes only the arguments that a method names. They are called while no run's context is active. One that raises
    costs a warning, and training goes on; ``rfflow.errors.EngineError`` is for one that means to end the experiment.
    """

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Every run is built; none has trained."""

    def on_run_start(self, experiment: Experiment, run: Run) -> None:
        """A run is about to train for the first time; ``run.plan`` is known."""

    def on_chunk_start(self, experiment: Experiment, run: Run, chunk: int) -> None:
        """A run is about to train on a chunk."""

    def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """A trainer logged something (its own names: ``loss``, ``eval_loss``, ...), or rfflow evaluated."""

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """A run reached a chunk boundary and gave the device back."""

    def on_run_end(self, experiment: Experiment, run: Run) -> None:
        """A run completed or failed (``run.error``)."""

    def on_run_change(self, experiment: Experiment, run: Run) -> None:
        """An op stopped, resumed or deleted a run, or made it as a clone (``run.state``)."""

    def on_op(self, experiment: Experiment, run: Run, text: str) -> None:
        """An op on a run was applied; ``text`` says which, by whom and what came of it."""

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        """Every live run is stopped, and the engine waits for an op in the directory, up to ``timeout`` seconds."""

    def on_exception(self, experiment: Experiment, error: BaseException) -> None:
        """The experiment ends by an exception; ``on_experiment_end`` will follow when it is closed in order."""

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Nothing is left to train."""
