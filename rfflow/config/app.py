"""The configuration of an app that builds its trainers itself; ours stands in a section of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rfflow.confidential import shown_config
from rfflow.config.fields import boolean, plain, settings_of, whole_number
from rfflow.config.spec import EXPERIMENT_KEYS, BuiltSpec, RunSpec


def built_run(build_trainer: Callable[[DictConfig], Any], cfg: DictConfig, name: str) -> BuiltSpec:
    """Return the run of an app whose function builds the trainer; our settings stand in its section ``rfflow``, if any.

    Args:
        build_trainer: takes the app's configuration and returns a ``transformers.Trainer`` that has not trained.
        cfg: the app's configuration.
        name: the experiment's name, if the section has none.
    """
    config = plain(cfg)
    shown = shown_config(cfg, config)
    allowed = (*EXPERIMENT_KEYS, "seed", "chunks", "evaluate")
    section = settings_of(config.get("rfflow"), "rfflow", allowed)
    chunks, evaluate = section.pop("chunks", 4), section.pop("evaluate", True)
    for group, defaults in _TRACKING.items():
        section[group] = {**{key: {"_target_": target} for key, target in defaults.items()}, **section.get(group, {})}
    return BuiltSpec(
        chunks=whole_number(chunks, "rfflow.chunks"),
        evaluate=boolean(evaluate, "rfflow.evaluate"),
        config=shown.config,
        hidden=shown.hidden,
        build=functools.partial(build_trainer, cfg),
        experiment={"name": name, "seed": config.get("seed", 42), **section},
    )


# What conf/ chooses for our own configurations.
_TRACKING: Mapping[str, Mapping[str, str]] = {
    "callbacks": {
        "table": "rfflow.tracking.table.LiveTable",
        "runs_csv": "rfflow.tracking.runs_csv.RunsTable",
        "metrics_log": "rfflow.tracking.metrics_log.MetricsLog",
        "timeline": "rfflow.tracking.timeline.Timeline",
    },
    "loggers": {"tensorboard": "rfflow.loggers.tensorboard.TensorBoardLogger"},
}


def experiment_config(spec: RunSpec, cfg: DictConfig) -> DictConfig:
    """Return the configuration that the experiment of a run is read from."""
    return cfg if spec.experiment is None else OmegaConf.create(dict(spec.experiment))
