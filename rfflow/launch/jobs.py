"""Runs as Hydra jobs: composed one by one, first those of a sweep, later the clones that people ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rfflow.checkpointing.starting import command_of
from rfflow.confidential import redacted
from rfflow.config.app import experiment_config
from rfflow.config.claims import Claims, claims_of
from rfflow.config.overrides import on_top, setting_apart
from rfflow.config.references import as_typed, resolved, unresolvable, value_at
from rfflow.config.spec import EXPERIMENT_KEYS, EvalSpec, Node, RunSpec, TrainSpec
from rfflow.config.typos import explained
from rfflow.control.admission import Admission
from rfflow.errors import ConfigError, RfflowError
from rfflow.launch.job_callbacks import JobNotes
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run

log = logging.getLogger(__name__)

_composing: ContextVar[bool] = ContextVar("rfflow_composing", default=False)


def is_composing() -> bool:
    """Whether a job's function is called for its configuration, and somebody else will train."""
    return _composing.get()


@dataclass(frozen=True)
class Job:
    """A job that returned a run and waits for it to be trained."""

    spec: RunSpec
    config: DictConfig
    """The job's configuration, Hydra's own included."""
    cfg: DictConfig
    """What the job's function was called with."""
    result: JobReturn
    shared: Node
    """The part of the resolved configuration that all runs of an experiment share."""
    notes: JobNotes
    """What Hydra's callbacks noted of it when it started."""

    @property
    def number(self) -> int:
        return int(self.config.hydra.job.num)

    @property
    def run_dir(self) -> Path:
        return directory_of(self.config)

    @contextmanager
    def hydra_config(self) -> Iterator[Any]:
        """Let ``HydraConfig`` be the job's, as in its function; ``run_job`` takes it away when that returns."""
        with hydra_config(self.config) as cfg:
            yield cfg

    @contextmanager
    def working_directory(self) -> Iterator[None]:
        """Stand where the job's function stood: in a directory of its own, with ``hydra.job.chdir``."""
        with chdir(self.stands_in) if self.stands_in.is_dir() else nullcontext():
            yield

    @property
    def stands_in(self) -> Path:
        """The directory in which the job's function stood."""
        return Path(self.result.working_dir or ".")


@contextmanager
def hydra_config(config: DictConfig) -> Iterator[Any]:
    """Let ``HydraConfig`` be that of a configuration."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield HydraConfig.instance().cfg
    finally:
        HydraConfig.instance().cfg = before


def directory_of(config: DictConfig) -> Path:
    """Return the directory of a job whose configuration was loaded."""
    return Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)


class Composer:
    """Composes the jobs of one experiment.

    Args:
        config: the configuration that the sweep (or the single run) was started with.
        root: the experiment's directory.
        is_sweep: whether the configuration is that of a sweep.
    """

    def __init__(
        self,
        config: DictConfig,
        config_loader: ConfigLoader,
        callbacks: Callbacks,
        task_function: TaskFunction,
        root: Path,
        *,
        is_sweep: bool,
    ):
        self._config = config
        self._config_loader = config_loader
        self._callbacks = callbacks
        self._task_function = task_function
        self._root = root
        self.command = command_of(config.hydra, is_sweep=is_sweep, directory=str(root))
        self._overrides: dict[int, list[str]] = {}
        self._apart: dict[int, Path | None] = {}
        """The directories of clones."""
        self._admission = Admission(config, config_loader, self._load_apart)
        self.waiting: dict[int, Job] = {}
        """Jobs whose run has not ended, by number."""
        self.next_number = 0

    def load(self, number: int, overrides: Sequence[str], directory: Path | None = None) -> DictConfig:
        """Compose a job's configuration, Hydra's own part included, and leave no trace of it yet.

        Args:
            number: the job's.
            overrides: all of them.
            directory: the job's; by default where ``hydra.sweep`` puts it.

        Raises:
            HydraException: if the overrides do not compose.
        """
        try:
            config = self._config_loader.load_sweep_config(self._config, list(overrides))
        except HydraException as error:
            said = explained(self._config_loader, self._config.hydra.job.config_name, overrides)
            raise (said or error) from None
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            place = self._place(config, directory)
            OmegaConf.set_readonly(config.hydra, False)  # it was none before HydraConfig saw it
            # Settled now: a resolver may say something else the next time.
            config.hydra.sweep.dir, config.hydra.sweep.subdir = place
        return config

    def _place(self, config: DictConfig, directory: Path | None) -> tuple[str, str]:
        if directory is None:
            with hydra_config(config):
                return str(value_at(config, "hydra.sweep.dir")), str(value_at(config, "hydra.sweep.subdir"))
        root = self._root.absolute()
        if directory.is_relative_to(root):
            return str(self._root), str(directory.relative_to(root))
        return str(directory.parent), directory.name

    def compose(self, number: int, overrides: Sequence[str], config: DictConfig) -> JobReturn:
        """Run a job's function for what it returns; if that is a run, the job waits until :meth:`end`.

        Args:
            number: the job's.
            overrides: with which its configuration was composed.
            config: what :meth:`load` has returned.
        """
        result = self._run(number, overrides, config)
        if number in self.waiting:
            self.started_with(self.waiting[number].spec)
        return result

    def started_with(self, spec: RunSpec) -> None:
        """Take note of a run that no op has asked for: what it names, clones may name.

        Raises:
            ConfigError: if it is an evaluation that has an adapter to train.
        """
        if isinstance(spec, EvalSpec) and spec.peft is not None:
            raise ConfigError(
                f"peft._target_ is {spec.peft['_target_']!r}, and this run is an evaluation, in which nothing is "
                "trained. Say peft=none; generator.adapter=DIR/runs/N answers with what a run has trained."
            )
        self._admission.started_with(spec.config)

    def compose_clone(
        self, parent: Run, overrides: Sequence[str], number: int, directory: Path | None = None
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        """Compose a clone from its parent's overrides and its own.

        Args:
            parent: whose clone it is.
            overrides: on top of its parent's.
            number: the clone's.
            directory: the clone's; by default the one among ``runs/`` that has its number.

        Returns:
            The clone's spec, the overrides that set it apart, and what ``HydraConfig`` holds for it.

        Raises:
            HydraException: if they do not compose.
        """
        before = self._overrides[parent.number]
        together = on_top(before, overrides)
        self._apart[number] = directory
        config = self._load_apart(number, together)
        self._admission.check(config, number, before, overrides)
        return self._compose_apart(number, together, config)

    def overrides_of(self, number: int) -> tuple[str, ...] | None:
        """Return all overrides of a job; None where there is no such job."""
        return tuple(self._overrides[number]) if number in self._overrides else None

    def compose_again(
        self, together: Sequence[str], number: int, directory: Path | None = None
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        """Compose a clone that was admitted before; otherwise as :meth:`compose_clone`."""
        self._apart[number] = directory
        return self._compose_apart(number, together, self._load_apart(number, together))

    def _compose_apart(
        self, number: int, together: Sequence[str], config: DictConfig
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        try:
            result = self._run(number, together, config, configure_logging=False)
        except OmegaConfBaseException as error:
            raise unresolvable(error, config) from None
        if result.status is JobStatus.FAILED:
            raised = result._return_value
            raise raised if isinstance(raised, HydraException) else ConfigError(f"{type(raised).__name__}: {raised}")
        job = self.waiting[number]
        with job.hydra_config() as hydra:
            return job.spec, self.setting_apart(together), hydra

    def _load_apart(self, number: int, overrides: Sequence[str]) -> DictConfig:
        return self.load(number, overrides, self._apart.get(number) or ExperimentPaths(self._root).run(number).root)

    def setting_apart(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return those of a job's overrides that are not every job's, as they may be shown."""
        own = setting_apart(overrides, as_typed(self._config.hydra.overrides.task))
        return tuple(redacted(text) for text in own)

    def remember(self, number: int, overrides: Sequence[str]) -> None:
        """Take note of a run that can be cloned."""
        self._overrides[number] = list(overrides)
        self.next_number = max(self.next_number, number + 1)

    def end(self, job: Job, status: JobStatus, value: Any) -> None:
        """Tell Hydra that a job which waited has ended, and how."""
        self.waiting.pop(job.number, None)
        job.result.return_value = value
        job.result.status = status
        with job.hydra_config(), job.working_directory(), job.notes.given_back():
            self._callbacks.on_job_end(config=job.config, job_return=job.result)

    def withdraw(self, number: int) -> None:
        """Tell Hydra that a clone has come to nothing, while what its callbacks write then can still be removed."""
        if number in self.waiting:
            self.end(self.waiting[number], JobStatus.FAILED, ConfigError(f"Run {number} was not admitted."))

    def _run(
        self, number: int, overrides: Sequence[str], config: DictConfig, configure_logging: bool = True
    ) -> JobReturn:
        callbacks = _WaitingCallbacks(self._callbacks, self.waiting)
        token = _composing.set(True)
        try:
            result = run_job(
                hydra_context=HydraContext(config_loader=self._config_loader, callbacks=callbacks),
                task_function=self._task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                configure_logging=configure_logging,
            )
        finally:
            _composing.reset(token)
        self.remember(number, overrides)
        return result


class _WaitingCallbacks(Callbacks):
    """Hydra's callbacks, with ``on_job_end`` put off for a job whose run has yet to be trained."""

    def __init__(self, callbacks: Callbacks, waiting: dict[int, Job]):
        super().__init__()
        self.callbacks = callbacks.callbacks
        self._waiting = waiting
        self._notes = JobNotes(self.callbacks)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        with self._notes.taken():
            super().on_job_start(config=config, task_function=task_function, **kwargs)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        spec = job_return._return_value
        if job_return.status is JobStatus.COMPLETED and isinstance(spec, RunSpec):
            assert job_return.cfg is not None
            shared = _shared(experiment_config(spec, job_return.cfg))
            job = Job(spec, config, job_return.cfg, job_return, shared, self._notes)
            self._waiting[job.number] = job
        else:
            super().on_job_end(config=config, job_return=job_return, **kwargs)


class ToldReturn(JobReturn):
    """What a job returned, or a sentence of what it failed of; Hydra would repeat all its overrides before that."""

    @property
    def return_value(self) -> Any:
        if isinstance(self._return_value, RfflowError):
            raise self._return_value
        return super().return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def told(result: JobReturn) -> JobReturn:
    """Return the same result, to be told in a sentence if it is one of ours."""
    return ToldReturn(**vars(result))


def check_shared(jobs: Sequence[Job]) -> None:
    """Check that the jobs agree on what belongs to the experiment.

    Raises:
        ConfigError: naming the key and the values seen.
    """
    for key in EXPERIMENT_KEYS:
        first, seen = jobs[0], jobs[0].shared.get(key)
        for job in jobs[1:]:
            if (value := job.shared.get(key)) != seen:
                name, seen, value = _difference(key, seen, value)
                # With its name, which tells whether it is a secret.
                one, other = (redacted(f"{name}={each!r}").removeprefix(f"{name}=") for each in (seen, value))
                raise ConfigError(
                    f"{name} belongs to the whole experiment and cannot differ between its runs. Seen: {one} (run "
                    f"{first.number}) and {other} (run {job.number}). Sweep it in experiments of their own."
                )


def _difference(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """Return the name of the first value that differs, as deep inside as it lies, and both values."""
    while isinstance(one, Mapping) and isinstance(other, Mapping):
        differing = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        if not differing:
            break
        name, one, other = f"{name}.{differing[0]}", one.get(differing[0]), other.get(differing[0])
    return name, one, other


def say_which_orders(jobs: Sequence[Job]) -> None:
    """Say it where runs see the rows in different orders: after a chunk they are compared on other rows, too."""
    given = (job.spec.trainer.args for job in jobs if isinstance(job.spec, TrainSpec))
    seeds = {args.get("data_seed") if args.get("data_seed") is not None else args.get("seed") for args in given}
    if len(seeds) > 1:
        names = ", ".join(sorted(map(str, seeds)))
        log.warning(
            "The runs have different trainer.args.data_seed (%s): their chunks are other rows, and what they score "
            "after one says less about the configurations. trainer.args.data_seed=42 gives all the same rows.",
            names,
        )


def check_claims(jobs: Sequence[Job]) -> None:
    """Check that jobs that are to train at once get out of each other's way.

    Raises:
        ConfigError: naming what two of them would have to share.
    """
    claims = Claims()
    for job in jobs:
        given = job.spec.trainer.args if isinstance(job.spec, TrainSpec) else {}
        claims.take(job.number, claims_of(given.get, job.stands_in))


def _shared(cfg: DictConfig) -> Node:
    config = OmegaConf.masked_copy(cfg, [key for key in EXPERIMENT_KEYS if key in cfg])
    config._set_parent(cfg)  # for what it refers to elsewhere
    return cast(Node, resolved(config))
