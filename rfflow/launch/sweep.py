"""From a Hydra sweep to an experiment: every job is composed first, then all of them train at once.

Works for any Hydra application: a job whose function returns a :class:`~rfflow.config.spec.RunSpec` becomes a run of
the experiment, and what another function returns is handed through, as Hydra's own launcher does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from rfflow.checkpointing.disk import unsaved
from rfflow.config.app import experiment_config
from rfflow.config.experiment import read_experiment
from rfflow.config.overrides import as_written
from rfflow.config.references import value_at
from rfflow.engine import restoring
from rfflow.errors import ConfigError
from rfflow.launch import resume, start
from rfflow.launch.jobs import (
    Composer,
    Job,
    check_claims,
    check_shared,
    directory_of,
    say_which_orders,
    told,
)
from rfflow.launch.process import check_open_files
from rfflow.launch.start import failure, is_through, leaving_in_order, raise_if_failed, restore_runs
from rfflow.runs import places
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.devices import with_what_can_travel

if TYPE_CHECKING:
    from rfflow.engine.engine import Engine
    from rfflow.search.sweeping import Refill

log = logging.getLogger(__name__)


class Sweep:
    """One ``--multirun``: its jobs arrive in one batch or several, and all belong to one experiment."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        """Look whether the experiment's directory is free; Hydra has not written to it yet.

        Raises:
            ConfigError: if it holds another experiment.
        """
        self._config = config
        self._paths = ExperimentPaths(str(value_at(config, "hydra.sweep.dir")))
        self._state = resume.state_of(self._paths.root)
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
                experiment = with_what_can_travel(experiment, (job.spec for job in jobs))
                check_open_files(len(jobs), 2 if experiment.loggers else 1)
                self._engine = start.make_engine(experiment, self._paths, self._composer)
            if self._state is not None:
                restoring.go_on(self._engine, self._state)
        for job in jobs:
            self._add(self._engine, job)
        if self._state is not None:
            restore_runs(self._engine, self._state, self._composer)
        if self.refill is not None:
            self._engine.refill = self._take_more
        try:
            with leaving_in_order(self._paths), env_override(self._config.hydra.job.env_set):
                self._engine.run()
        except BaseException:
            self._settle(is_news=False)
            self._engine.close()
            raise
        self._settle(is_news=True)
        self._engine.close()
        self._engine.save(is_finished=self._is_one_batch and is_through(self._engine))
        self._end_jobs(self._engine)
        raise_if_failed(run for run in self._engine.experiment.runs if run.parent is not None)

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
