"""The loop: take the ops that are due, ask the scheduler who is next, let that run train one chunk, tell everybody."""

from __future__ import annotations

import gc
import logging
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning_fabric import Fabric

from rfflow.checkpointing.checkpointer import Keeper
from rfflow.checkpointing.disk import is_disk_trouble, resume_command, unsaved
from rfflow.checkpointing.experiment_file import Answer, SavedExperiment, SavedRun
from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.control.ownership import lock_of_experiment
from rfflow.engine.callbacks import Audience, make_fabric, namespaced
from rfflow.engine.cloning import Cloner, Composer
from rfflow.engine.interruption import Interruption
from rfflow.engine.metrics_check import Foresight
from rfflow.engine.steering import Steering
from rfflow.errors import ConfigError, EngineError
from rfflow.files import shown
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.events import Boundary, Finished, Log, Progress, Ready, WarmStart
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths, RunPaths
from rfflow.runs.run import Run, RunState
from rfflow.scheduling.scheduler import Assignment, Scheduler
from rfflow.worker.memory.allocator import keep_freed_memory
from rfflow.worker.memory.memory import is_out_of_memory, out_of_memory_advice
from rfflow.worker.memory.offload import Tier
from rfflow.worker.training.session import Trainee
from rfflow.worker.worker import Roster

log = logging.getLogger(__name__)

_EVALUATING = re.compile(r"eval_(\w+_)?runtime")
"""What a trainer calls the seconds of an evaluation; there may be several data sets."""


class Engine:
    """Trains the runs of one experiment, all at once, on one device.

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
        make_trainee: Callable[..., Trainee] = Trainee,
    ):
        """Open an experiment's directory; nothing is built yet.

        Args:
            spec: what all runs have in common.
            paths: where the experiment keeps its files.
            fabric: made from ``spec`` where it is not given.
            composer: composes clones; without one they are refused.
            make_trainee: called as :class:`Trainee` is, for something with the same attributes and methods.
        """
        _make_directory(paths.root)
        self.experiment = Experiment(spec, paths)
        self.fabric = fabric or make_fabric(spec)
        self._audience = Audience(self.fabric)
        self.fabric.seed_everything(spec.seed, workers=False, verbose=False)
        self._composer = composer
        self._scheduler = Scheduler()
        self._keeper = Keeper(self.experiment, self._job_of, getattr(composer, "command", None))
        self._lock = lock_of_experiment(paths.root)
        self.roster = Roster(self.experiment, self.fabric, self._keeper, self._scheduler.upcoming, make_trainee)
        self.cloner = Cloner(self.experiment, composer, self.roster)
        self._steering: Steering | None = None
        self._is_open = False
        self.refill: Callable[[], None] | None = None
        """Called between turns, after ops: may :meth:`add` runs and let them :meth:`join`."""
        self._interruption = Interruption(spec.checkpoint.grace, self._hurry, self._farewell)
        self._saved: SavedExperiment | None = None
        self._to_restore: dict[int, tuple[SavedRun, Path | None]] = {}
        """Runs of an earlier process, and the checkpoints they go on from."""
        self._foresight = Foresight(spec.objective, spec.searched)
        self._logged: Counter[int] = Counter()
        """How often each run has logged since its last checkpoint."""
        self._evaluated: defaultdict[int, float] = defaultdict(float)
        """Seconds that each run has evaluated since its last boundary."""
        self._to_skip: Counter[int] = Counter()
        """How many of its next logs are repeated."""

    def add(self, spec: RunSpec, number: int, overrides: Iterable[str] = (), run_dir: Path | None = None) -> Run:
        """Put a run in the queue; nothing is built yet."""
        paths = RunPaths(run_dir) if run_dir else self.experiment.paths.run(number)
        run = Run(number, spec, tuple(overrides), paths)
        _make_directory(paths.root)
        self.roster.enrol(run, HydraConfig.instance().cfg)
        self.experiment.runs.append(run)
        return run

    def go_on(self, saved: SavedExperiment) -> None:
        """Take over what belongs to no run of an experiment of an earlier process; then :meth:`restore` its runs.

        Raises:
            ConfigError: if that process is not gone.
        """
        self._hold()
        self._saved = saved
        self._keeper.go_on(saved)
        self.experiment.started, self.experiment.id = saved.started, saved.id

    def is_restored(self, run: Run) -> bool:
        """Whether the run has its past."""
        return run.number in self._to_restore

    def restore(self, run: Run, record: SavedRun) -> Path | None:
        """Give a run that was added its past back; return the checkpoint that it goes on from, if it does from one."""
        checkpoint = self._keeper.restore(run, record)
        self._to_restore[run.number] = (record, checkpoint)
        return checkpoint

    def join(self, run: Run) -> None:
        """Let a run that was added while others train take part; one that cannot be built has failed."""
        try:
            self._prepare(run)
        except (OSError, HydraException) as error:
            if is_disk_trouble(error):
                raise unsaved(f"what run {run.number} needs", error, self.experiment.paths.root) from error
            self._fail(run, error)
            return
        assert run.plan is not None
        self._scheduler.add(run.number, chunks=len(run.plan))
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

    def _run(self) -> None:
        try:
            with self._interruption.raising():
                self._open()
            self.save()
            while True:
                behind = self._behind()
                if self._steering is not None and not behind:
                    self._steering.take_ops()
                if self.refill is not None and not behind:
                    self.refill()
                self._interruption.raise_if_asked()
                self._keeper.check()
                assignment = self._scheduler.next(among=behind)
                if assignment is not None:
                    self._turn(assignment)
                elif not self._wait_for_ops():
                    break
            self._keeper.wait_for_all()
        except BaseException as error:
            self._is_open = False
            is_disks = isinstance(error, OSError) or is_disk_trouble(error)
            if not isinstance(error, EngineError) and not is_disks:
                self._save_unsaved()
            try:
                self._call("on_exception", error=error)
            except Exception:  # what went wrong first is what must be heard
                log.exception("A callback failed after the experiment had")
            self._let_go()
            if is_disks and self.experiment.runs and not isinstance(error, EngineError | ConfigError):
                raise unsaved("what the runs leave", error, self.experiment.paths.root) from error
            raise

    def close(self) -> None:
        """Say that the experiment has ended; a later :meth:`run` opens it again."""
        if self._is_open:
            self._is_open = False
            try:
                self._call("on_experiment_end")
                self._audience.sum_up()
            finally:
                self._let_go()
        else:
            self._let_go()

    def save(self, answer: Answer | None = None, *, is_finished: bool = False) -> None:
        """Write ``experiment.json``; once this returns, an op file that was answered is answered for good."""
        if self._steering is not None:
            self._keeper.imagined = self._steering.imagined
        self._keeper.write(self._scheduler.ahead, answer, is_finished=is_finished)

    def objective(self, run: Run) -> float | None:
        """Return the run's value of the metric that ranks the runs."""
        return self.experiment.spec.objective.value(run.metrics)

    # --- what ops do; every run is at a boundary of its own when they are called --------------------------------------

    def stop(self, run: Run) -> None:
        """Take a run off the device; its state is kept, and it can be resumed."""
        self._checkpoint_now(run)
        run.move_to(RunState.STOPPED)
        self._scheduler.stop(run.number)
        self.roster.leave_device(run)
        self._call("on_run_change", run=run)

    def resume(self, run: Run) -> None:
        """Let a stopped run go on with its next chunk."""
        run.move_to(RunState.RUNNING if run.chunks else RunState.QUEUED)
        self._scheduler.resume(run.number)
        self._call("on_run_change", run=run)

    def holds(self, run: Run) -> bool:
        """Whether the run's trainer is there; not any more once the experiment has been closed."""
        return run.number in self.roster.trainees

    def delete(self, run: Run) -> None:
        """Give a run up; what it has saved stays."""
        run.move_to(RunState.DELETED)
        self._scheduler.remove(run.number)
        self.roster.give_up(run)
        self._call("on_run_change", run=run)

    def admit(self, run: Run) -> None:
        """Let a clone that was made take part."""
        assert run.plan is not None
        if run.paths.start.exists():
            self._keeper.started_warm(run)
        self.experiment.runs.append(run)
        self._scheduler.add(run.number, chunks=len(run.plan))
        self._call("on_run_change", run=run)

    def discard(self, run: Run) -> None:
        """Forget a clone that was made and not admitted."""
        self.cloner.drop(run)

    def tell(self, hook: str, **kwargs: Any) -> None:
        """Call a hook of every Fabric callback."""
        self._call(hook, **kwargs)

    # --- one turn -----------------------------------------------------------------------------------------------------

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
            self._steering = Steering(self, self._saved, self._keeper.imagined)
        for run in new:
            self._prepare(run)
        self._foresight.check({} if self._steering is None else self._steering.read_metrics)
        self._keeper.data = self.roster.workshop.fingerprints()
        if self._saved is not None:
            self._saved.check_data(self._keeper.data)
        if not self._is_open:
            self._is_open = True
            self._call("on_experiment_start")
        for run in new:
            assert run.plan is not None
            record, _ = self._to_restore.get(run.number, (None, None))
            self._scheduler.add(run.number, len(run.plan), len(run.chunks), None if record is None else record.ahead)
            if run.state is RunState.STOPPED:
                self._scheduler.stop(run.number)
        for run in self.experiment.runs:
            if run.state.is_final:
                self.roster.give_up(run)

    def _prepare(self, run: Run) -> None:
        """Build a run up to its next step."""
        record, checkpoint = self._to_restore.get(run.number, (None, None))
        start = None
        if record is not None and record.is_warm:
            start = WarmStart(run.parent or 0, run.paths.start, run.first_chunk)
        ready = self.roster.prepare(run, start, checkpoint)
        run.plan = ready.plan
        self._foresight.note(run.number, ready.foreseen)
        if run.state is RunState.STOPPED:
            self.roster.leave_device(run)

    def _turn(self, assignment: Assignment) -> None:
        run = self.experiment.run(assignment.run)
        if run.state is RunState.QUEUED:
            run.move_to(RunState.RUNNING)
            self._call("on_run_start", run=run)
        self._call("on_chunk_start", run=run, chunk=assignment.chunk)
        self._keeper.wait(run)  # nothing of it may change while it is written
        started, switched = time.time(), self.roster.trainees[run.number].context.switch_seconds
        try:
            boundary = self._train_or_try_again(run)
        except EngineError:
            raise
        except (Exception, SystemExit) as error:  # one run failing is news; the others go on
            if is_disk_trouble(error):  # the others would fail by it too, one after the other
                raise unsaved(f"what run {run.number} saves", error, self.experiment.paths.root) from error
            self._fail(run, error)
            return
        finally:
            self.roster.active = None
        trainee = self.roster.trainees[run.number]
        self.roster.workshop.memory.observe()
        run.reach(boundary.step, boundary.metrics, boundary.running)
        result = ChunkResult(
            run=run.number,
            chunk=assignment.chunk,
            step=boundary.step,
            metrics=dict(run.metrics),
            answers=boundary.answers,
            started=started,
            ended=time.time(),
            switch=max(0.0, trainee.context.switch_seconds - switched),
            evaluation=self._evaluated.pop(run.number, 0.0),
        )
        run.chunks.append(replace(result, answers=()))  # they are for people to read, and not kept
        self._foresight.look(run.number, run.metrics)
        self._scheduler.finish(assignment)
        if isinstance(boundary, Finished):
            self._scheduler.remove(run.number)  # it may have ended early, by a callback of the user's
        if isinstance(boundary, Finished) or not self._keeper.draft(run, trainee):
            trainee.keep_weights()
        # In this order: what was logged is in the files; it is on record that the run has come here; everybody hears
        # of it; and only then there is a checkpoint, or the word that it has completed, that makes it needless to come
        # here again.
        self._audience.save()
        self.save()
        if isinstance(boundary, Finished):
            run.move_to(RunState.COMPLETED)
        self._call("on_chunk_end", run=run, result=result)
        if isinstance(boundary, Finished):
            self._end(run)
            self.save()
        else:
            self._commit(run)
            if self._has_nan(boundary) and self.experiment.spec.on_nan == "stop":
                log.warning("Run %s is stopped: its loss or its weights are not numbers any more", run.number)
                self.stop(run)
                self.save()
        if run.state is RunState.COMPLETED:
            self._keeper.ended(run)

    def _train_or_try_again(self, run: Run) -> Boundary:
        """Train a chunk; if the memory is not enough, free what can be freed and train it once more."""
        try:
            trainee = self.roster.active = self.roster.trainees[run.number]
            self.roster.make_room(trainee)
            return self._train_chunk(run, trainee)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            with self.roster.trainees[run.number].context.active():
                log.warning("Out of memory at step %s", run.step, exc_info=error)
            log.warning("Run %s is out of memory and is tried once more with what could be freed", run.number)
        try:
            trainee = self.roster.active = self._build_again(run)
            return self._train_chunk(run, trainee)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise RuntimeError(out_of_memory_advice(error, self.fabric.device)) from error
            raise

    def _build_again(self, run: Run) -> Trainee:
        checkpoint = self._keeper.newest(run)
        run.step = checkpoint.step if checkpoint else 0
        self._to_skip[run.number], self._logged[run.number] = self._logged[run.number], 0
        return self.roster.build_again(run, checkpoint.path if checkpoint else None)

    def _train_chunk(self, run: Run, trainee: Trainee) -> Boundary:
        if self._interruption.number is not None:
            trainee.hurry()
        done = run.chunks[-1].step if run.chunks else 0
        while True:
            pause = trainee.resume()
            assert not isinstance(pause, Ready)
            self._publish(run, pause.logs)
            run.step = pause.step
            if isinstance(pause, Boundary):
                if pause.step <= done:
                    continue  # it is tried again, and its last checkpoint was before this boundary
                if self._has_nan(pause) and self.experiment.spec.on_nan == "fail":
                    raise ArithmeticError(f"the loss or a weight is NaN at step {pause.step} (engine.on_nan=fail)")
                return pause
            assert isinstance(pause, Progress)
            if self._interruption.number is not None:
                if pause.can_checkpoint:
                    self._interrupt_here(run)
            elif self._steering is not None and not self._behind():
                self._steering.look_ahead(run)

    def _interrupt_here(self, run: Run) -> None:
        """Leave a run in the middle of a chunk."""
        self._checkpoint_now(run)
        self._interruption.raise_if_asked()

    def _has_nan(self, boundary: Boundary) -> bool:
        loss = boundary.metrics.get("loss")
        return not boundary.is_finite or (loss is not None and loss != loss)

    def _publish(self, run: Run, logs: Iterable[Log]) -> None:
        for step, metrics in logs:
            self._logged[run.number] += 1
            if self._to_skip[run.number]:
                self._to_skip[run.number] -= 1
                continue
            run.note(metrics, step)
            run.logs += 1
            run.step = max(run.step, step)
            self._evaluated[run.number] += sum(value for key, value in metrics.items() if _EVALUATING.fullmatch(key))
            self._audience.log(namespaced(run.name, metrics), step)
            self._call("on_log", run=run, metrics=metrics, step=step)

    def _fail(self, run: Run, error: Exception | SystemExit) -> None:
        run.error = error
        run.move_to(RunState.FAILED)
        self._scheduler.remove(run.number)
        with self.roster.trainees[run.number].context.active():
            log.error("Run %s failed at step %s\n%s", run.number, run.step, "".join(traceback.format_exception(error)))
        self._end(run)
        self.save()  # behind the end, which everybody must have heard of

    def _end(self, run: Run) -> None:
        self._keeper.wait(run)
        self.roster.give_up(run)
        self._call("on_run_end", run=run)

    def _behind(self) -> set[int]:
        """Return the runs that were further in the process before this one: they catch up before any op is taken.

        Else an op would be applied to a run at an earlier place than the one at which somebody asked for it.
        """
        return {run.number for run in self.experiment.runs if run.state.is_live and self._keeper.is_behind(run)}

    def _commit(self, run: Run) -> None:
        if self._keeper.commit(run):
            self._logged[run.number] = 0

    def _checkpoint_now(self, run: Run) -> None:
        """Save a run as it stands, and wait until it is."""
        trainee = self.roster.trainees[run.number]
        self._keeper.wait(run)
        if trainee.holdings is not None and not self._keeper.is_saved(run):
            trainee.holdings.move_to(Tier.DEVICE)
            self._keeper.checkpoint_now(run, trainee)
            self._logged[run.number] = 0

    def _save_unsaved(self) -> None:
        """Save what suspended runs have trained since their last checkpoint, as far as that can be."""
        try:
            for run in self.experiment.runs:
                at_boundary = run.chunks and run.step == run.chunks[-1].step
                if run.state is RunState.RUNNING and at_boundary and run.number in self.roster.trainees:
                    self._checkpoint_now(run)
                    self.roster.leave_device(run)  # so that the next one finds room there
        except Exception:
            log.exception("Not everything could be saved; the last checkpoints stand")

    def _hurry(self) -> None:
        if self.roster.active is not None:
            self.roster.active.hurry()

    def _farewell(self) -> str:
        return f"Left at once. What was saved stands: {resume_command(self.experiment.paths.root)}"

    def _job_of(self, number: int) -> tuple[str, ...] | None:
        overrides_of = getattr(self._composer, "overrides_of", None)
        return None if overrides_of is None else overrides_of(number)

    def _wait_for_ops(self) -> bool:
        """Wait while stopped runs could be resumed; return whether there is a reason to look again."""
        if self._steering is None:
            return False
        with self._interruption.raising():
            stopped = [run for run in self.experiment.runs if run.state is RunState.STOPPED and self.holds(run)]
            if any(self._steering.is_awaited(run) for run in stopped):
                return self._steering.wait()
            return self._steering.wait_for_young_files()

    def _hold(self) -> None:
        """See to it that nobody else trains in the experiment's directory, until :meth:`_let_go`."""
        if not self._lock.is_intact():
            self._lock.acquire()

    def _let_go(self) -> None:
        closing = [self.cloner.forget_early, self._keeper.close, self.roster.close]
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
