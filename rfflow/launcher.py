"""From a Hydra sweep to an experiment: every job is composed first, then all of them train at once.

Works for any Hydra application: a job whose function returns a :class:`~rfflow.spec.RunSpec` becomes a run of the
experiment, and what another function returns is handed through, as Hydra's own launcher does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from rfflow.errors import ConfigError, RunFailed
from rfflow.overrides import setting_apart
from rfflow.runs import ExperimentPaths, Run, RunState
from rfflow.spec import EXPERIMENT_KEYS, ExperimentSpec, Node, RunSpec, read_experiment, read_run

if TYPE_CHECKING:
    from rfflow.engine import Engine

log = logging.getLogger(__name__)

_composing: ContextVar[bool] = ContextVar("rfflow_composing", default=False)


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
    spec = read_run(cfg)
    if _composing.get():
        return spec
    hydra = HydraConfig.get()
    engine = make_engine(read_experiment(cfg), ExperimentPaths(_relative(Path(hydra.runtime.output_dir))))
    try:
        run = engine.add(spec, 0, tuple(hydra.overrides.task))
        engine.run()
    finally:
        engine.close()
    if run.state is RunState.FAILED:
        raise failure(run) from run.error
    return engine.objective(run)


def make_engine(experiment: ExperimentSpec, paths: ExperimentPaths) -> Engine:
    """Import torch and the trainers, as late as can be, and make the engine."""
    from rfflow.engine import Engine

    return Engine(experiment, paths)


def failure(run: Run) -> RunFailed:
    """Say in a sentence that a run failed, why, and where to read on."""
    reason = str(run.error).strip().partition("\n")[0] or "no message"
    return RunFailed(
        f"Run {run.number} ({run.label}) failed: {type(run.error).__name__}: {reason}\nIts trace: {run.paths.log}"
    )


# --- a sweep ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job that returned a run and waits for it to be trained."""

    spec: RunSpec
    config: DictConfig
    """The job's configuration, Hydra's own included."""
    cfg: DictConfig
    """What the job's function was called with."""
    result: JobReturn
    experiment: Node
    """The part of the resolved configuration that all runs share."""

    @property
    def number(self) -> int:
        return int(self.config.hydra.job.num)

    @property
    def run_dir(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir)) / str(self.config.hydra.sweep.subdir)


class Sweep:
    """One ``--multirun``: its jobs arrive in one batch or several, and all belong to one experiment."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        self._config = config
        self._task_function = task_function
        self._callbacks = hydra_context.callbacks
        self._config_loader = hydra_context.config_loader
        self._jobs: list[Job] = []
        self._engine: Engine | None = None

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Compose every job, then train the runs among them.

        Raises:
            ConfigError: before any training, if one of the configurations cannot be.
        """
        setup_globals()
        self._configure_log()
        paths = ExperimentPaths(str(self._config.hydra.sweep.dir))
        paths.root.mkdir(parents=True, exist_ok=True)
        log.info("Launching %d jobs in %s", len(job_overrides), paths.root)
        waiting = _WaitingCallbacks(self._callbacks)
        try:
            results = [self._compose(number, job, waiting) for number, job in enumerate(job_overrides, first)]
            if waiting.jobs:
                for result in results:
                    _ = result.return_value  # a job that failed is known now, not after hours of training the others
                self._train(waiting.jobs, paths)
        except Exception as error:
            for job in waiting.jobs:
                self._end(job, JobStatus.FAILED, error)
            raise
        return results

    def _compose(self, number: int, overrides: Sequence[str], callbacks: _WaitingCallbacks) -> JobReturn:
        log.info("\t#%d : %s", number, " ".join(self._setting_apart(filter_overrides(overrides))))
        config = self._config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        with _composing_jobs():
            result = run_job(
                hydra_context=HydraContext(config_loader=self._config_loader, callbacks=callbacks),
                task_function=self._task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        self._configure_log()
        if result.status is JobStatus.FAILED and isinstance(result._return_value, ConfigError):
            raise result._return_value
        return result

    def _train(self, jobs: list[Job], paths: ExperimentPaths) -> None:
        self._jobs += jobs
        _check_shared(self._jobs)
        if self._engine is None:
            with _hydra_config(jobs[0].config):
                self._engine = make_engine(read_experiment(jobs[0].cfg), paths)
        runs = [self._add(self._engine, job, paths) for job in jobs]
        try:
            with env_override(self._config.hydra.job.env_set):
                self._engine.run()
        finally:
            self._engine.close()
        for job, run in zip(jobs, runs, strict=True):
            if run.state is RunState.FAILED:
                error = failure(run)
                error.__cause__ = run.error
                self._end(job, JobStatus.FAILED, error)
            else:
                self._end(job, JobStatus.COMPLETED, self._engine.objective(run))

    def _add(self, engine: Engine, job: Job, paths: ExperimentPaths) -> Run:
        overrides = self._setting_apart(job.result.overrides or [])
        is_usual = job.run_dir == paths.run(job.number).root
        with _hydra_config(job.config):
            return engine.add(job.spec, job.number, overrides, run_dir=None if is_usual else job.run_dir)

    def _end(self, job: Job, status: JobStatus, value: Any) -> None:
        job.result.return_value = value
        job.result.status = status
        with _hydra_config(job.config):
            self._callbacks.on_job_end(config=job.config, job_return=job.result)

    def _setting_apart(self, overrides: Sequence[str]) -> tuple[str, ...]:
        return setting_apart(overrides, self._config.hydra.overrides.task)

    def _configure_log(self) -> None:
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)


class _WaitingCallbacks(Callbacks):
    """Hydra's callbacks, with ``on_job_end`` put off for a job whose run has yet to be trained."""

    def __init__(self, callbacks: Callbacks):
        super().__init__()
        self.callbacks = callbacks.callbacks
        self.jobs: list[Job] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        spec = job_return._return_value
        if job_return.status is JobStatus.COMPLETED and isinstance(spec, RunSpec):
            assert job_return.cfg is not None
            self.jobs.append(Job(spec, config, job_return.cfg, job_return, _shared(job_return.cfg)))
        else:
            super().on_job_end(config=config, job_return=job_return, **kwargs)


@contextmanager
def _composing_jobs() -> Iterator[None]:
    token = _composing.set(True)
    try:
        yield
    finally:
        _composing.reset(token)


@contextmanager
def _hydra_config(config: DictConfig) -> Iterator[None]:
    """Let ``HydraConfig`` be the job's, as in the job's own function; ``run_job`` takes it away when that returns."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def _shared(cfg: DictConfig) -> Node:
    config = OmegaConf.masked_copy(cfg, [key for key in EXPERIMENT_KEYS if key in cfg])
    config._set_parent(cfg)  # for what it refers to elsewhere
    return cast(Node, OmegaConf.to_container(config, resolve=True))


def _check_shared(jobs: Sequence[Job]) -> None:
    """Check that the jobs agree on what belongs to the experiment."""
    for key in EXPERIMENT_KEYS:
        first, seen = jobs[0], jobs[0].experiment.get(key)
        for job in jobs[1:]:
            if (value := job.experiment.get(key)) != seen:
                raise ConfigError(
                    f"{key} belongs to the whole experiment and cannot differ between its runs. Seen: {seen!r} (run "
                    f"{first.number}) and {value!r} (run {job.number}). Sweep it in experiments of their own."
                )


def _relative(path: Path) -> Path:
    """Name a path as people do where they stand."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
