"""An engine, made as late as can be and left in order."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rfflow.checkpointing.disk import resume_command
from rfflow.checkpointing.experiment_file import SavedExperiment
from rfflow.config.references import value_at
from rfflow.config.spec import ExperimentSpec
from rfflow.engine import restoring
from rfflow.engine.interruption import Interrupted, is_interactive
from rfflow.errors import ConfigError, RunFailed, kind_of
from rfflow.files import shown
from rfflow.launch import resume
from rfflow.launch.jobs import (
    Composer,
)
from rfflow.runs import places
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.devices import find_devices

if TYPE_CHECKING:
    from rfflow.engine.engine import Engine

log = logging.getLogger(__name__)


def check_directory(config: DictConfig) -> ConfigError | None:
    """Return what is wrong with the directory of a single run, before Hydra writes to it."""
    try:
        paths = ExperimentPaths(str(value_at(config, "hydra.run.dir")))
        if resume.state_of(paths.root) is None:
            places.check_no_experiment(0, paths.run(0).root)
    except ConfigError as error:
        return error
    except OSError:
        return None  # making it will say so
    return None


def make_engine(experiment: ExperimentSpec, paths: ExperimentPaths, composer: Composer) -> Engine:
    """Import torch and the trainers, as late as can be, and make the engine.

    Raises:
        ConfigError: if the devices are not there that it is to use.
    """
    if experiment.cluster is not None:
        return _on_a_cluster(experiment, paths, composer)
    with _leaving_garbage(), _naming_caches():
        devices = find_devices(experiment)
        if len(devices) == 1:
            # Before torch looks: transformers would take all that it sees, and runs of one process share one device.
            os.environ.update(devices[0].environment)
        from rfflow.engine.callbacks import make_fabric
        from rfflow.engine.engine import Engine

    if len(devices) == 1:
        return Engine(experiment, paths, composer=composer)
    from rfflow.slots.processes import ProcessSlots

    log.info("%d devices: %s", len(devices), ", ".join(dict.fromkeys(device.name for device in devices)))
    slots = ProcessSlots(experiment, [device.environment for device in devices])
    fabric = make_fabric(replace(experiment, accelerator="cpu"))  # the devices are the workers'
    return Engine(experiment, paths, fabric, composer, slots=slots)


def _on_a_cluster(experiment: ExperimentSpec, paths: ExperimentPaths, composer: Composer) -> Engine:
    from rfflow.slots.cluster import join_cluster

    cluster = join_cluster(experiment, paths.root)
    with _leaving_garbage(), _naming_caches():
        from rfflow.engine.callbacks import make_fabric
        from rfflow.engine.engine import Engine
        from rfflow.slots.ray import RaySlots
    fabric = make_fabric(replace(experiment, accelerator="cpu"))  # the devices are the actors'
    return Engine(experiment, paths, fabric, composer, slots=RaySlots(experiment, cluster))


@contextmanager
def _naming_caches() -> Iterator[None]:
    """Say what may be done where a library cannot be loaded because of its cache."""
    try:
        yield
    except OSError as error:  # a cache of torch's or another library's, most likely
        raise ConfigError(
            f"The libraries cannot be loaded: {error}. Where that is a cache of theirs, name another folder for it "
            "(TORCHINDUCTOR_CACHE_DIR, HF_HOME, MPLCONFIGDIR, TMPDIR)."
        ) from error


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


def failure(run: Run) -> RunFailed:
    """Say in a sentence that a run failed, why, and where to read on."""
    reason = str(run.error).strip().partition("\n")[0] or "no message"
    kind = "no error" if run.error is None else kind_of(run.error)
    failed = RunFailed(f"{run.called} failed: {kind}: {reason}\nIts trace: {shown(run.paths.log)}")
    failed.__cause__ = run.error
    return failed


def restore_runs(engine: Engine, state: SavedExperiment, composer: Composer) -> None:
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
            restoring.take_up(engine, run, found)
    restoring.put_in_order(engine, state)


def is_through(engine: Engine) -> bool:
    return all(run.state.is_final for run in engine.experiment.runs)


@contextmanager
def leaving_in_order(paths: ExperimentPaths) -> Iterator[None]:
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


def raise_if_failed(runs: Iterable[Run]) -> None:
    for run in runs:
        if run.state is RunState.FAILED:
            raise failure(run)
