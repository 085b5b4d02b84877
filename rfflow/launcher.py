"""From a Hydra sweep to an experiment: every job is composed first, then all of them train at once.

Works for any Hydra application: a job whose function returns a :class:`~rfflow.spec.RunSpec` becomes a run of the
experiment, and what another function returns is handed through, as Hydra's own launcher does.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from rfflow import places, resuming
from rfflow.confidential import redacted
from rfflow.config_files import escaped_words
from rfflow.configuration import built_run, experiment_config, read_experiment, read_run
from rfflow.errors import ConfigError, RunFailed
from rfflow.interruption import Interrupted, is_interactive
from rfflow.jobs import (
    Composer,
    Job,
    check_claims,
    check_shared,
    directory_of,
    is_composing,
    say_which_orders,
    told,
)
from rfflow.keeping import resume_command, unsaved
from rfflow.overrides import as_written
from rfflow.process import check_open_files, settle
from rfflow.references import as_typed, value_at
from rfflow.runs import ExperimentPaths, Run, RunState
from rfflow.saved import SavedExperiment
from rfflow.spec import ExperimentSpec, RunSpec
from rfflow.tracking.files import shown

if TYPE_CHECKING:
    from rfflow.engine import Engine
    from rfflow.search.sweeping import Refill

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> RunSpec | float | None:
    """Train one configuration; the function for ``@hydra.main`` to call, in rfflow's own command as in yours.

    In a sweep under ``hydra/launcher=rfflow`` it returns a run for the launcher to train together with the others.
    Anywhere else (no sweep, or another launcher) it trains at once, as an experiment of one, in the job's output
    directory.

    Returns:
        The run, or the value of its objective.

    Raises:
        ConfigError: before any training, if the configuration cannot be.
        RunFailed: if the run raised while training.
    """
    return _train(cfg, read_run)


def run(build_trainer: Callable[[DictConfig], Any], cfg: DictConfig) -> RunSpec | float | None:
    """Train what a function of your own builds: for an app that has its own configuration and its own script.

    ::

        @hydra.main(version_base="1.3", config_path="conf", config_name="config")
        def main(cfg):
            return rfflow.run(build_trainer, cfg)

    With ``hydra/launcher=rfflow`` the jobs of a sweep train side by side, and ops, curves and checkpoints are as they
    are elsewhere. Settings of ours may stand in a section ``rfflow`` of the configuration: ``chunks``, ``evaluate``,
    ``objective``, ``engine``, ``control``, ``callbacks``, ``loggers``.

    Args:
        build_trainer: takes ``cfg`` and returns a ``transformers.Trainer`` of any kind, without calling ``train()``.
        cfg: the job's configuration.

    Returns:
        What :func:`train` returns.

    Raises:
        ConfigError: before any training, if the configuration cannot be.
        RunFailed: if the run raised while training.
    """
    return _train(cfg, lambda cfg: built_run(build_trainer, cfg, HydraConfig.get().job.name))


def _train(cfg: DictConfig, read: Callable[[DictConfig], RunSpec]) -> RunSpec | float | None:
    spec = read(cfg)
    if is_composing():
        return spec
    settle()
    hydra = HydraConfig.get()
    overrides = tuple(as_written(escaped_words(as_typed(hydra.overrides.task))))
    paths = ExperimentPaths(_relative(Path(hydra.runtime.output_dir)))
    config = cast(DictConfig, cast(DictConfig, hydra)._get_parent())
    composer = Composer(config, GlobalHydra.instance().config_loader(), Callbacks(), read, paths.root, is_sweep=False)
    composer.remember(0, overrides)
    composer.started_with(spec)
    state = resuming.state_of(paths.root)
    if state is None:
        places.check_unused(0, paths.run(0).root)
    engine = make_engine(read_experiment(experiment_config(spec, cfg)), paths, composer)
    try:
        run = engine.add(spec, 0, map(redacted, overrides))
        if state is not None:
            resuming.go_on(engine, state)
            _restore(engine, state, composer)
        with _leaving_in_order(paths):
            engine.run()
    finally:
        engine.close()
    engine.save(is_finished=_is_over(engine))
    _raise_if_failed(engine.experiment.runs)
    return engine.objective(run)


def check_directory(config: DictConfig) -> ConfigError | None:
    """Return what is wrong with the directory of a single run, before Hydra writes to it."""
    try:
        paths = ExperimentPaths(str(value_at(config, "hydra.run.dir")))
        if resuming.state_of(paths.root) is None:
            places.check_no_experiment(0, paths.run(0).root)
    except ConfigError as error:
        return error
    except OSError:
        return None  # making it will say so
    return None


def make_engine(experiment: ExperimentSpec, paths: ExperimentPaths, composer: Composer) -> Engine:
    """Import torch and the trainers, as late as can be, and make the engine."""
    see_one_gpu(experiment)
    with _leaving_garbage():
        try:
            from rfflow.engine import Engine
        except OSError as error:  # a cache of torch's or another library's, most likely
            raise ConfigError(
                f"The libraries cannot be loaded: {error}. Where that is a cache of theirs, name another folder for it "
                "(TORCHINDUCTOR_CACHE_DIR, HF_HOME, MPLCONFIGDIR, TMPDIR)."
            ) from error

    return Engine(experiment, paths, composer=composer)


@contextmanager
def _leaving_garbage() -> Iterator[None]:
    """Importing makes half a million objects that stay; to look for garbage among them takes a fifth of the time."""
    is_enabled = gc.isenabled()
    gc.collect()  # what composing the jobs has left would be kept for good
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it looked for there later
        if is_enabled:
            gc.enable()


def see_one_gpu(experiment: ExperimentSpec) -> None:
    """Show this process only the GPU that it is to use, before torch looks.

    transformers would take all that it sees, and the runs of one process share one device.

    Raises:
        ConfigError: if CUDA_VISIBLE_DEVICES names fewer GPUs than ``engine.device`` counts.
    """
    if experiment.accelerator not in ("auto", "cuda", "gpu"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(experiment.device)
    elif visible.strip():
        names = [name.strip() for name in visible.split(",")]
        if experiment.device >= len(names) and len(names) > 1:
            raise ConfigError(
                f"engine.device is {experiment.device}, but CUDA_VISIBLE_DEVICES shows {len(names)} GPUs ({visible}). "
                f"Allowed: 0 to {len(names) - 1}."
            )
        if len(names) > 1:  # one alone is what an earlier call, or the user, has chosen
            os.environ["CUDA_VISIBLE_DEVICES"] = names[experiment.device]


def failure(run: Run) -> RunFailed:
    """Say in a sentence that a run failed, why, and where to read on."""
    reason = str(run.error).strip().partition("\n")[0] or "no message"
    failed = RunFailed(f"{run.called} failed: {type(run.error).__name__}: {reason}\nIts trace: {shown(run.paths.log)}")
    failed.__cause__ = run.error
    return failed


class Sweep:
    """One ``--multirun``: its jobs arrive in one batch or several, and all belong to one experiment."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        """Look whether the experiment's directory is free; Hydra has not written to it yet.

        Raises:
            ConfigError: if it holds another experiment.
        """
        self._config = config
        self._paths = ExperimentPaths(str(value_at(config, "hydra.sweep.dir")))
        self._state = resuming.state_of(self._paths.root)
        self._callbacks = hydra_context.callbacks
        self._composer = Composer(
            config,
            hydra_context.config_loader,
            hydra_context.callbacks,
            task_function,
            self._paths.root,
            is_sweep=True,
        )
        self._jobs: list[Job] = []
        self._engine: Engine | None = None
        self._late: list[JobReturn] = []
        """Of jobs that came while others trained."""
        self.refill: Refill | None = None
        """Gives more jobs as runs end; a search does."""

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Compose every job, then train the runs among them.

        Raises:
            ConfigError: before any training, if one of the configurations cannot be.
            RunFailed: if a clone made by an op failed; Hydra's sweeper raises for the jobs themselves.
        """
        setup_globals()
        self._configure_log()
        self._paths.root.mkdir(parents=True, exist_ok=True)
        log.info("Launching %d jobs in %s", len(job_overrides), self._paths.root)
        first = max(first, self._composer.next_number)  # clones of an earlier batch have taken numbers too
        numbers = list(range(first, first + len(job_overrides)))
        if self.refill is not None:
            numbers = self.refill.number_of(len(job_overrides), first)
        try:
            jobs = list(zip(numbers, map(as_written, job_overrides), strict=True))
            # All of them before the first one's directory is made: nothing is there of a sweep that has a typo.
            configs = [self._load(number, overrides) for number, overrides in jobs]
            for number, config in zip(numbers, configs, strict=True):
                self._check_unused(number, directory_of(config))
            results = [self._compose(*job, config) for job, config in zip(jobs, configs, strict=True)]
            if self._composer.waiting:
                for result in results:
                    _ = result.return_value  # a job that failed is known now, not after hours of training the others
                if self.refill is not None:
                    for number in numbers:
                        self.refill.started(number)
                self._train(list(self._composer.waiting.values()))
        except Exception as error:
            for job in list(self._composer.waiting.values()):
                self._composer.end(job, JobStatus.FAILED, error)
            raise
        late, self._late = self._late, []
        return list(map(told, results + late))

    def _load(self, number: int, overrides: Sequence[str]) -> DictConfig:
        record = None if self._state is None else self._state.run(number)
        directory = None if record is None else record.path(self._paths.root)
        return self._composer.load(number, overrides, directory)

    def _check_unused(self, number: int, place: Path) -> None:
        """Check that a job's directory is no other experiment's, before Hydra writes there."""
        if self._state is None:
            places.check_no_experiment(number, place)

    def _check_places(self, jobs: Sequence[Job]) -> None:
        """Check that every run has a directory of its own, before any of them trains.

        Raises:
            ConfigError: if one is another's, too.
        """
        found = {job.number: job.run_dir for job in jobs}
        places.check_apart(found, [] if self._engine is None else self._engine.experiment.runs)
        for number, place in found.items() if self._state is None else ():
            places.check_unused(number, place)

    def _compose(self, number: int, overrides: Sequence[str], config: DictConfig) -> JobReturn:
        log.info("\t#%d : %s", number, " ".join(self._composer.setting_apart(filter_overrides(overrides))))
        result = self._composer.compose(number, overrides, config)
        self._configure_log()
        if result.status is JobStatus.FAILED and isinstance(result._return_value, ConfigError):
            raise result._return_value
        return result

    def _train(self, jobs: list[Job]) -> None:
        self._jobs += jobs
        self._check_places(jobs)
        check_shared(self._jobs)
        say_which_orders(self._jobs)
        check_claims(jobs)
        if self._engine is None:
            with jobs[0].hydra_config():
                experiment = read_experiment(experiment_config(jobs[0].spec, jobs[0].cfg))
                check_open_files(len(jobs), 2 if experiment.loggers else 1)
                self._engine = make_engine(experiment, self._paths, self._composer)
            if self._state is not None:
                resuming.go_on(self._engine, self._state)
        for job in jobs:
            self._add(self._engine, job)
        if self._state is not None:
            _restore(self._engine, self._state, self._composer)
        if self.refill is not None:
            self._engine.refill = self._take_more
        try:
            with _leaving_in_order(self._paths), env_override(self._config.hydra.job.env_set):
                self._engine.run()
        except BaseException:
            self._settle(is_news=False)
            self._engine.close()
            raise
        self._settle(is_news=True)
        self._engine.close()
        self._engine.save(is_finished=self._is_one_batch and _is_over(self._engine))
        self._end_jobs(self._engine)
        _raise_if_failed(run for run in self._engine.experiment.runs if run.parent is not None)

    def _settle(self, *, is_news: bool) -> None:
        """Tell the search how the runs stand; a disk that has ended the experiment may have no room for that."""
        if self.refill is None or self._engine is None:
            return
        try:
            self.refill.settle(self._engine.experiment.runs)
        except OSError as error:
            if is_news:
                raise unsaved("the study of the search", error, self._paths.root) from error
            log.warning("The study of the search was not brought up to date: %s", error)

    @property
    def _is_one_batch(self) -> bool:
        """Whether the sweeper will surely not come with more jobs."""
        sweeper = self._config.hydra.sweeper
        is_known = sweeper.get("_target_", "").endswith((".BasicSweeper", ".RfflowSweeper"))
        return is_known and (self.refill is not None or sweeper.get("max_batch_size") is None)

    def _take_more(self) -> None:
        """Compose the jobs that a search asks for now, and let their runs take part; one that cannot be has failed."""
        assert self.refill is not None and self._engine is not None
        runs = self._engine.experiment.runs
        for overrides in map(as_written, self.refill.next(runs)):
            number = max(self._composer.next_number, max(run.number for run in runs) + 1)
            try:
                config = self._load(number, overrides)
                result = self._compose(number, overrides, config)
                self._late.append(result)
                _ = result.return_value
                self._check_places([self._composer.waiting[number]])
                check_shared([*self._jobs, self._composer.waiting[number]])
            except Exception as error:  # Hydra hands on whatever a job's function raised
                log.warning("The job %s cannot be composed: %s", " ".join(overrides), error)
                self.refill.failed()
                continue
            job = self._composer.waiting[number]
            self._jobs.append(job)
            run = self._add(self._engine, job)
            self.refill.started(number)
            self._engine.join(run)

    def _add(self, engine: Engine, job: Job) -> Run:
        overrides = self._composer.setting_apart(job.result.overrides or [])
        with job.hydra_config():
            return engine.add(job.spec, job.number, overrides, run_dir=job.run_dir)

    def _end_jobs(self, engine: Engine) -> None:
        runs = {run.number: run for run in engine.experiment.runs}
        for number, job in list(self._composer.waiting.items()):
            run = runs.get(number)
            if run is None:
                self._composer.withdraw(number)
            elif run.state is RunState.FAILED:
                self._composer.end(job, JobStatus.FAILED, failure(run))
            else:
                self._composer.end(job, JobStatus.COMPLETED, engine.objective(run))

    def _configure_log(self) -> None:
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)


def _restore(engine: Engine, state: SavedExperiment, composer: Composer) -> None:
    """Give the runs their past, and add the clones that were made before the jobs that are still to come."""
    there = {run.number for run in engine.experiment.runs}
    to_come = [record.number for record in state.runs if record.parent is None and record.number not in there]
    for record in state.runs:
        if (
            record.number not in there
            and record.parent is not None
            and record.number < min(to_come, default=sys.maxsize)
        ):
            place = record.path(engine.experiment.paths.root)
            spec, label, _ = composer.compose_again(record.job or (), record.number, place)
            with composer.waiting[record.number].hydra_config():
                engine.add(spec, record.number, label, run_dir=place)
    for run in engine.experiment.runs:
        if (found := state.run(run.number)) is not None and not engine.is_restored(run):
            resuming.take_up(engine, run, found)
    resuming.put_in_order(engine, state)


def _is_over(engine: Engine) -> bool:
    return all(run.state.is_final for run in engine.experiment.runs)


@contextmanager
def _leaving_in_order(paths: ExperimentPaths) -> Iterator[None]:
    """Turn an interruption into an exit status, and say how to go on."""
    try:
        yield
    except Interrupted as interrupted:
        if paths.state.exists():
            print(f"\nInterrupted; everything is saved. Go on with: {resume_command(paths.root)}", file=sys.stderr)
        else:
            print("\nInterrupted; nothing is saved that could be gone on with.", file=sys.stderr)
        if is_interactive():
            raise KeyboardInterrupt from None
        raise SystemExit(interrupted.exit_status) from None


def _raise_if_failed(runs: Iterable[Run]) -> None:
    for run in runs:
        if run.state is RunState.FAILED:
            raise failure(run)


def _relative(path: Path) -> Path:
    """Name a path as people do where they stand."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
