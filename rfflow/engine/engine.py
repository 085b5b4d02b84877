"""The loop: take the ops that are due, ask the scheduler who is next, begin, hear what comes of it, tell everybody."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning_fabric import Fabric

from rfflow.checkpointing.checkpointer import Checkpointer
from rfflow.checkpointing.disk import is_disk_trouble, unsaved
from rfflow.checkpointing.experiment_file import OpOutcome, RunRecord, SavedExperiment
from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.control.ownership import lock_of_experiment
from rfflow.engine.boundary import Boundaries
from rfflow.engine.callbacks import Audience, make_fabric
from rfflow.engine.cloning import Cloner, Composer
from rfflow.engine.estimating import RunningEstimates, check_baselines
from rfflow.engine.hearing import Hearing
from rfflow.engine.interruption import Interruption
from rfflow.engine.leaving import farewell, save_unsaved
from rfflow.engine.lifecycle import Lifecycle
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.engine.money import Money
from rfflow.engine.opening import Opening
from rfflow.engine.placement import Placement
from rfflow.engine.steering import Steering
from rfflow.errors import ConfigError, EngineError
from rfflow.files import shown
from rfflow.runs.events import Heard
from rfflow.runs.experiment import Experiment
from rfflow.runs.forecast import told
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState
from rfflow.scheduling.groups import companions
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.slots.local import LocalSlots
from rfflow.slots.slots import Slots
from rfflow.worker.memory.allocator import keep_freed_memory
from rfflow.worker.session import Session, make_session
from rfflow.worker.worker import Worker

log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.5
"""Seconds after which a free slot asks again whether an op has come, while others train."""


class Engine:
    """Trains the runs of one experiment, all at once.

    ::

        engine = Engine(experiment_spec, ExperimentPaths("outputs/sft/today"))
        engine.add(spec, number=0, overrides=("lr=1e-3",))
        engine.run()
        engine.close()

    More runs may be added after :meth:`run` has returned, and :meth:`run` called again.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        paths: ExperimentPaths,
        fabric: Fabric | None = None,
        composer: Composer | None = None,
        make_session: Callable[..., Session] = make_session,
        slots: Slots | None = None,
    ):
        """Open an experiment's directory; nothing is built yet.

        Args:
            spec: what all runs have in common.
            paths: where the experiment keeps its files.
            fabric: made from ``spec`` where it is not given.
            composer: composes clones; without one they are refused.
            make_session: called as :func:`rfflow.worker.session.make_session` is.
            slots: where runs train; one device, in this process, where they are not given.
        """
        _make_directory(paths.root)
        self.experiment = Experiment(spec, paths)
        self.fabric = fabric or make_fabric(spec)
        self._audience = Audience(self.fabric)
        self.fabric.seed_everything(spec.seed, workers=False, verbose=False)
        self.experiment.slots = 1 if slots is None else slots.count
        self.slots = slots or LocalSlots(lambda tell: Worker(spec, self.fabric, tell, make_session))
        self.refill: Callable[[], None] | None = None
        """Called between turns, after ops: may :meth:`add` runs and let them :meth:`join`."""
        self._composer = composer
        self._scheduler = Scheduler()
        self._checkpointer = Checkpointer(self.experiment, self._job_of, getattr(composer, "command", None))
        self._lock = lock_of_experiment(paths.root)
        self._money = Money(self.experiment)
        self._placement = Placement(
            self.slots,
            self._scheduler,
            self._checkpointer,
            lambda: self.experiment.runs,
            self._handle_meanwhile,
            self._money.limited,
        )
        cloner = Cloner(self.experiment, composer, self._placement.builds)
        self.lifecycle = Lifecycle(
            self.experiment, self._scheduler, self._checkpointer, self._placement, cloner, self._call
        )
        self._placement.builds.spent = self._money.spent
        self._metrics_check = MetricsCheck(spec.objective, spec.searched)
        self._opening = Opening(self._checkpointer, self._placement, self._scheduler, self._metrics_check)
        boundaries = Boundaries(self._audience, self.lifecycle, self._metrics_check)
        self._hearing = Hearing(
            self.lifecycle,
            self._placement,
            self._checkpointer,
            boundaries,
            RunningEstimates(self.experiment),
            self._look_ahead,
            self._money.pause,
        )
        self._interruption = Interruption(
            spec.checkpoint.grace, self._placement.hurry, lambda: farewell(self.experiment)
        )
        self._steering: Steering | None = None
        self._is_open = False
        self._trouble: BaseException | None = None
        """What ends the experiment, and was heard while something else was done."""
        self._heard_meanwhile = False
        """Whether anything was heard since ops were last looked for: who saw it may have asked for something."""
        self._saved: SavedExperiment | None = None
        self._is_reopened = False
        """Whether it was finished, and is open again for ops."""
        self._waits = False
        """Whether it has said that it waits for ops: it does then, until they come or the time is up."""

    def add(self, spec: RunSpec, number: int, overrides: Iterable[str] = (), run_dir: Path | None = None) -> Run:
        """Put a run in the queue; nothing is built yet."""
        paths = RunPaths(run_dir) if run_dir else self.experiment.paths.run(number)
        run = Run(number, spec, tuple(overrides), paths)
        _make_directory(paths.root)
        self._placement.builds.enrol(run, HydraConfig.instance().cfg)
        self.experiment.runs.append(run)
        return run

    def go_on(self, saved: SavedExperiment) -> None:
        """Take over what belongs to no run of an experiment of an earlier process; then :meth:`restore` its runs.

        Raises:
            ConfigError: if that process is not gone.
        """
        self._hold()
        self._saved = saved
        self._placement.builds.check_rows = saved.check_data
        self._checkpointer.go_on(saved)
        self.experiment.started, self.experiment.id = saved.started, saved.id

    def is_restored(self, run: Run) -> bool:
        """Whether the run has its past."""
        return self._opening.is_restored(run)

    def restore(self, run: Run, record: RunRecord) -> Path | None:
        """Give a run that was added its past back; return the checkpoint that it goes on from, if it does from one."""
        return self._opening.restore(run, record)

    def join(self, run: Run) -> None:
        """Let a run that was added while others train take part; one that cannot be built has failed."""
        try:
            self._opening.prepare([run])
        except EngineError:  # heard while it was built, of another run perhaps
            raise
        except Exception as error:
            if is_disk_trouble(error):
                raise unsaved(f"what run {run.number} needs", error, self.experiment.paths.root) from error
            if not isinstance(error, OSError | HydraException):  # a library's, which may be any
                log.exception("Run %s cannot be built", run.number)
            self.lifecycle.fail(run, error)
            return
        self._opening.let_in(run)
        self._call("on_run_change", run=run)
        self.save()

    def run(self) -> None:
        """Train until no run is left that can go on.

        Raises:
            ConfigError: before any training, if one of the new runs cannot be built.
            Interrupted: if a signal came; everything is saved.
            EngineError: if something could not be saved; nothing has been trained since.
        """
        with self._interruption.heard():
            self._run()

    def close(self) -> None:
        """Say that the experiment has ended; a later :meth:`run` opens it again."""
        if self._is_open:
            self._is_open = False
            try:
                self._call("on_experiment_end")
                self._audience.finalize("success")
                self._audience.sum_up()
            finally:
                self._let_go()
        else:
            self._let_go()

    def save(self, answer: OpOutcome | None = None, *, is_finished: bool = False) -> None:
        """Write ``experiment.json``; once this returns, an op file that was answered is answered for good."""
        self.lifecycle.save(answer, is_finished=is_finished)

    def objective(self, run: Run) -> float | None:
        """Return the run's value of the metric that ranks the runs."""
        return self.experiment.spec.objective.value(run.metrics)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._interruption.raising():
                self._open()
            self.save()
            while self._step():
                pass
        except BaseException as error:
            self._is_open, self._trouble = False, None
            is_disks = isinstance(error, OSError) or is_disk_trouble(error)
            if not isinstance(error, EngineError) and not is_disks:
                save_unsaved(self.experiment, self._placement)
            try:
                self._call("on_exception", error=error)
                self._audience.finalize("failed")
            except Exception:  # what went wrong first is what must be heard
                log.exception("A callback failed after the experiment had")
            self._let_go()
            if is_disks and self.experiment.runs and not isinstance(error, EngineError | ConfigError):
                raise unsaved("what the runs leave", error, self.experiment.paths.root) from error
            raise

    def _step(self) -> bool:
        """Begin what can begin, or hear one event; return whether there is more to come."""
        if self._trouble is not None:
            raise self._trouble
        while self._hear(0):
            pass
        if self._placement.free:
            behind = self._behind()
            if self._interruption.number is None and not behind:
                self._heard_meanwhile = False
                self._take_ops()
                if self._heard_meanwhile:  # while a clone was built, perhaps: a run that has come to a boundary
                    return True
            if not self._placement.busy:
                self._interruption.raise_if_asked()
            if self._interruption.number is None and self._begin_all(behind):
                return True
        if self._placement.busy or self._checkpointer.is_busy:
            self._hear(_LOOK_AGAIN if self._placement.free else None)
            return True
        self._money.raise_if_paused()
        return self._wait_for_ops()

    def _take_ops(self) -> None:
        if self._steering is not None:
            self._steering.take_ops(self._placement.is_training)
        if self.refill is not None:
            self.refill()

    def _begin_all(self, behind: set[int]) -> bool:
        """Give every free slot a run; return whether one got one."""
        held = set() if self._steering is None else self._steering.held
        has_begun = False
        for slot in self._placement.free:
            # A policy sees what it would see on one device: nobody goes on while another has yet to come as far.
            ahead = self._scheduler.leading() if self._is_level else set()
            away = held | ahead | self._placement.kept_off(slot)
            assignment = self._scheduler.next(slot, behind, away, self._placement.bound())
            if assignment is not None:
                self.lifecycle.begin([assignment, *self._beside(assignment, behind, away)])
                has_begun, self._waits = True, False
                if self._heard_meanwhile:
                    break
        if has_begun and self._interruption.number is not None:
            self._placement.hurry()
        if self._steering is not None:
            self._steering.show()
        return has_begun

    def _beside(self, first: Assignment, among: set[int], held: set[int]) -> list[Assignment]:
        """Give the slot to those, too, that go together with a run and would have their turns next."""
        runs = self.experiment.runs
        waiting = self._scheduler.level_with(first, among, held)
        specs = {run.number: run.spec for run in runs if run.number in waiting}
        numbers = companions(self.experiment.run(first.run).spec, specs, self.experiment.spec)
        numbers = [] if self._placement.is_suspect(first.run) else numbers
        chosen = [number for number in numbers if not self._placement.is_suspect(number)]
        found = (self._scheduler.next(first.slot, [number], held) for number in chosen)
        return [assignment for assignment in found if assignment is not None]

    @property
    def _is_level(self) -> bool:
        """Whether runs have to wait for each other."""
        return self.slots.count > 1 and self.experiment.spec.policy is not None

    def _hear(self, timeout: float | None) -> bool:
        heard = self._placement.hear(timeout)
        if heard is not None:
            self._hearing.handle(heard)
        return heard is not None

    def _handle_meanwhile(self, heard: Heard) -> None:
        """Take an event while somebody awaits another: he may make little of errors that are not his."""
        self._heard_meanwhile = True
        try:
            self._hearing.handle(heard)
        except BaseException as error:
            self._trouble = error
            raise

    def _look_ahead(self, run: Run) -> None:
        """Use a pause in the middle of a chunk for what an op will ask when it has ended."""
        if self._interruption.number is None and self._steering is not None and not self._behind():
            self._steering.look_ahead(run)

    # --- before the first turn ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Build every new run up to its first step, so that what is wrong with any of them is said now."""
        self._hold()
        new = [run for run in self.experiment.runs if not run.state.is_final and run.plan is None]
        # accelerate collects garbage when a trainer begins; the half million objects that imports have made are none.
        gc.freeze()
        if self.fabric.device.type == "cpu":
            keep_freed_memory()
        if self._steering is None and (self.experiment.spec.control.enabled or self.experiment.spec.policy):
            # Refuses a control directory that another experiment owns.
            steering = self._steering = Steering(self.lifecycle, self._saved, self._checkpointer.imagined)
            self.lifecycle.imagined = lambda: steering.imagined
        self._money.check()
        self._placement.open()
        forecasts = self._opening.prepare(new, at_once=self.slots.count)
        check_baselines(self.experiment.runs)
        self._metrics_check.check({} if self._steering is None else self._steering.read_metrics)
        before = {} if self._saved is None else self._saved.data
        self._checkpointer.data = {**before, **self._placement.builds.rows}
        if self._saved is not None:
            self._saved.check_data(self._placement.builds.rows)
            # All that was asked of it is done: it was opened for what somebody will ask now.
            are_over = all(run.state.is_final for run in self.experiment.runs)
            self._is_reopened = self._is_reopened or (self._saved.is_finished and are_over)
        if (sentence := told(forecasts)) is not None:
            log.info("%s", sentence)
        if not self._is_open:
            self._is_open = True
            self._call("on_experiment_start")
        for run in new:
            self._opening.let_in(run)

    # --- details ------------------------------------------------------------------------------------------------------

    def _behind(self) -> set[int]:
        """Return the runs that were further in the process before this one: they catch up before any op is taken.

        Else an op would be applied to a run at an earlier place than the one at which somebody asked for it.
        """
        return {run.number for run in self.experiment.runs if run.state.is_live and self._checkpointer.is_behind(run)}

    def _job_of(self, number: int) -> tuple[str, ...] | None:
        overrides_of = getattr(self._composer, "overrides_of", None)
        return None if overrides_of is None else overrides_of(number)

    def _wait_for_ops(self) -> bool:
        """Wait while stopped runs could be resumed, or as was said; return whether there is a reason to look again."""
        if self._steering is None:
            return False
        with self._interruption.raising():
            runs = self.experiment.runs
            stopped = [run for run in runs if run.state is RunState.STOPPED and self._placement.builds.holds(run)]
            self._waits = self._waits or any(self._steering.is_awaited(run) for run in stopped)
            if self._waits or self._is_reopened:
                return self._steering.wait()
            return self._steering.wait_for_young_files()

    def _hold(self) -> None:
        """See to it that nobody else trains in the experiment's directory, until :meth:`_let_go`."""
        if not self._lock.is_intact():
            self._lock.acquire()

    def _let_go(self) -> None:
        closing = [self.lifecycle.cloner.forget_early, self._placement.close, self._checkpointer.forget_writing]
        if self._steering is not None:
            closing.append(self._steering.close)
            self._steering = None
        for close in (*closing, self._lock.release):
            try:
                close()
            except Exception as error:  # all else is let go, and what ended the experiment must be heard
                log.warning("While the experiment is closed: %s: %s", type(error).__name__, error)

    def _call(self, hook: str, **kwargs: Any) -> None:
        self._audience.call(hook, experiment=self.experiment, **kwargs)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The directory {shown(path)} cannot be made: {error}. Another one: hydra.sweep.dir=..., hydra.run.dir=..."
        ) from error
