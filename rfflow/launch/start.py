"""An engine, made as late as can be and left in order."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rfflow.checkpointing.disk import resume_command
from rfflow.checkpointing.experiment_file import SavedExperiment
from rfflow.config.references import value_at
from rfflow.config.spec import ExperimentSpec
from rfflow.engine import restoring
from rfflow.engine.interruption import Interrupted, is_interactive
from rfflow.errors import ConfigError, RunFailed
from rfflow.files import shown
from rfflow.launch import resume
from rfflow.launch.jobs import (
    Composer,
)
from rfflow.runs import places
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState

if TYPE_CHECKING:
    from rfflow.engine.engine import Engine


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
    """Import torch and the trainers, as late as can be, and make the engine."""
    see_one_gpu(experiment)
    with _leaving_garbage():
        try:
            from rfflow.engine.engine import Engine
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
