"""One job of a Hydra application: trained at once, or handed to the sweep's launcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rfflow.confidential import redacted
from rfflow.config.app import built_run, experiment_config
from rfflow.config.experiment import read_experiment
from rfflow.config.files import escaped_words
from rfflow.config.overrides import as_written
from rfflow.config.references import as_typed
from rfflow.config.run import read_run
from rfflow.config.spec import BuiltSpec, RunSpec
from rfflow.engine import restoring
from rfflow.errors import ConfigError
from rfflow.launch import resume, start
from rfflow.launch.jobs import (
    Composer,
    is_composing,
)
from rfflow.launch.process import settle
from rfflow.launch.start import is_through, leaving_in_order, raise_if_failed, restore_runs
from rfflow.runs import places
from rfflow.runs.paths import ExperimentPaths


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
    if cfg.get("search") and hydra.mode is not RunMode.MULTIRUN and not isinstance(spec, BuiltSpec):
        chosen = hydra.runtime.choices.get("search")
        raise ConfigError(
            f"search={chosen} asks for configurations, and this is one run. Add --multirun and what to search: "
            "'lr=tag(log,interval(1e-5,1e-2))'"
        )
    overrides = tuple(as_written(escaped_words(as_typed(hydra.overrides.task))))
    paths = ExperimentPaths(_relative(Path(hydra.runtime.output_dir)))
    config = cast(DictConfig, cast(DictConfig, hydra)._get_parent())
    composer = Composer(config, GlobalHydra.instance().config_loader(), Callbacks(), read, paths.root, is_sweep=False)
    composer.remember(0, overrides)
    composer.started_with(spec)
    state = resume.state_of(paths.root)
    if state is None:
        places.check_unused(0, paths.run(0).root)
    experiment = read_experiment(experiment_config(spec, cfg))
    if experiment.devices == "auto":
        experiment = replace(experiment, devices=1)  # one run has no use for a second
    engine = start.make_engine(experiment, paths, composer)
    try:
        run = engine.add(spec, 0, map(redacted, overrides))
        if state is not None:
            restoring.go_on(engine, state)
            restore_runs(engine, state, composer)
        with leaving_in_order(paths):
            engine.run()
    finally:
        engine.close()
    engine.save(is_finished=is_through(engine))
    raise_if_failed(engine.experiment.runs)
    return engine.objective(run)


def _relative(path: Path) -> Path:
    """Name a path as people do where they stand."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
