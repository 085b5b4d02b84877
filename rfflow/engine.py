"""The loop: ask the scheduler who is next, let that run train one chunk, tell everybody what came of it."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric import Fabric

from rfflow.errors import ConfigError, EngineError
from rfflow.runs import ChunkResult, Experiment, ExperimentPaths, Run, RunPaths, RunState
from rfflow.scheduler import Assignment, Scheduler
from rfflow.spec import ExperimentSpec, Node, RunSpec
from rfflow.training.coroutine import Boundary, Finished, Log, Progress, Ready
from rfflow.training.trainee import Trainee, Workshop

log = logging.getLogger(__name__)


class Engine:
    """Trains the runs of one experiment, all at once, on one device.

    ::

        engine = Engine(experiment_spec, ExperimentPaths("outputs/sft/today"))
        engine.add(spec, number=0, overrides=("lr=1e-3",))
        engine.run()
        engine.close()

    More runs may be added after :meth:`run` has returned, and :meth:`run` called again.
    """

    def __init__(self, spec: ExperimentSpec, paths: ExperimentPaths, fabric: Fabric | None = None):
        paths.root.mkdir(parents=True, exist_ok=True)
        self.experiment = Experiment(spec, paths)
        self.fabric = fabric or make_fabric(spec)
        self.fabric.seed_everything(spec.seed, workers=False, verbose=False)
        self._scheduler = Scheduler()
        self._workshop = Workshop(self.fabric)
        self._trainees: dict[int, Trainee] = {}
        self._is_open = False

    def add(self, spec: RunSpec, number: int, overrides: Iterable[str] = (), run_dir: Path | None = None) -> Run:
        """Put a run in the queue; nothing is built yet."""
        paths = RunPaths(run_dir) if run_dir else self.experiment.paths.run(number)
        run = Run(number, spec, tuple(overrides), paths)
        run.paths.root.mkdir(parents=True, exist_ok=True)
        self._trainees[number] = Trainee(
            run,
            self._workshop,
            capture_output=self.experiment.spec.capture_output,
            hydra=HydraConfig.instance().cfg,
        )
        self.experiment.runs.append(run)
        return run

    def run(self) -> None:
        """Train until no run is left that can go on.

        Raises:
            ConfigError: before any training, if one of the new runs cannot be built.
        """
        try:
            self._prepare()
            while (assignment := self._scheduler.next()) is not None:
                self._turn(assignment)
        except BaseException as error:
            self._call("on_exception", error=error)
            self._abandon()
            raise

    def close(self) -> None:
        """Say that the experiment has ended; a later :meth:`run` opens it again."""
        if self._is_open:
            self._is_open = False
            self._call("on_experiment_end")

    def objective(self, run: Run) -> float | None:
        """Return the run's value of the metric that ranks the runs."""
        return self.experiment.spec.objective.value(run.metrics)

    # --- one turn -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Build every new run up to its first step, so that what is wrong with any of them is said now."""
        new = [
            run for run in self.experiment.runs if run.state is RunState.QUEUED and run.number not in self._scheduler
        ]
        for run in new:
            ready = self._trainees[run.number].prepare()
            assert isinstance(ready, Ready)
            run.plan = ready.plan
        if not self._is_open:
            self._is_open = True
            self._call("on_experiment_start")
        for run in new:
            assert run.plan is not None
            self._scheduler.add(run.number, chunks=len(run.plan))

    def _turn(self, assignment: Assignment) -> None:
        run = self._run(assignment.run)
        if run.state is RunState.QUEUED:
            run.move_to(RunState.RUNNING)
            self._call("on_run_start", run=run)
        self._call("on_chunk_start", run=run, chunk=assignment.chunk)
        trainee = self._trainees[run.number]
        started, switched = time.time(), trainee.context.switch_seconds
        try:
            boundary = self._train_chunk(run, trainee)
        except EngineError:
            raise
        except Exception as error:  # one run failing is news; the others go on
            self._fail(run, error)
            return
        result = ChunkResult(
            run=run.number,
            chunk=assignment.chunk,
            step=boundary.step,
            metrics=boundary.metrics,
            started=started,
            ended=time.time(),
            switch=trainee.context.switch_seconds - switched,
        )
        self._record(run, result)
        self._scheduler.finish(assignment)
        if isinstance(boundary, Finished):
            self._scheduler.remove(run.number)  # it may have ended early, by a callback of the user's
            run.move_to(RunState.COMPLETED)
            self._end(run)

    def _train_chunk(self, run: Run, trainee: Trainee) -> Boundary:
        while True:
            pause = trainee.resume()
            assert not isinstance(pause, Ready)
            self._publish(run, pause.logs)
            run.step = pause.step
            if isinstance(pause, Boundary):
                return pause
            assert isinstance(pause, Progress)

    def _publish(self, run: Run, logs: Iterable[Log]) -> None:
        for step, metrics in logs:
            run.metrics.update(metrics)
            run.step = max(run.step, step)
            self.fabric.log_dict(namespaced(run.name, metrics), step=step)
            self._call("on_log", run=run, metrics=metrics, step=step)

    def _record(self, run: Run, result: ChunkResult) -> None:
        run.chunks.append(result)
        run.metrics.update(result.metrics)
        self._call("on_chunk_end", run=run, result=result)

    def _fail(self, run: Run, error: Exception) -> None:
        run.error = error
        run.move_to(RunState.FAILED)
        self._scheduler.remove(run.number)
        with self._trainees[run.number].context.active():
            log.error("Run %s failed at step %s\n%s", run.number, run.step, "".join(traceback.format_exception(error)))
        self._end(run)

    def _end(self, run: Run) -> None:
        self._trainees.pop(run.number).close()
        self._call("on_run_end", run=run)

    def _abandon(self) -> None:
        for trainee in self._trainees.values():
            trainee.close()
        self._trainees.clear()

    def _run(self, number: int) -> Run:
        return next(run for run in self.experiment.runs if run.number == number)

    def _call(self, hook: str, **kwargs: Any) -> None:
        self.fabric.call(hook, experiment=self.experiment, **kwargs)


def namespaced(run: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as loggers get them: ``3/train/loss``, ``3/eval/loss``."""
    return {
        f"{run}/eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"{run}/train/{key}": value
        for key, value in metrics.items()
    }


def make_fabric(spec: ExperimentSpec) -> Fabric:
    """Make the Fabric that finds the device and carries loggers and callbacks.

    Loggers that have hooks (``on_chunk_end``, ...) hear them too.

    Raises:
        ConfigError: if a logger or callback cannot be made, or the device is not there.
    """
    loggers = [_instantiate(node, f"loggers.{name}") for name, node in spec.loggers.items()]
    callbacks = [_instantiate(node, f"callbacks.{name}") for name, node in spec.callbacks.items()]
    hearing = [logger for logger in loggers if any(name.startswith("on_") for name in dir(logger))]
    try:
        return Fabric(accelerator=spec.accelerator, devices=1, loggers=loggers, callbacks=[*hearing, *callbacks])
    except (ValueError, RuntimeError) as error:  # Lightning's MisconfigurationException among them
        raise ConfigError(f"engine.accelerator is {spec.accelerator!r}: {error}") from error


def _instantiate(node: Node, where: str) -> Any:
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: cannot make {node.get('_target_')!r}: {error.__cause__ or error}") from error
