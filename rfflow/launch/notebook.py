"""The command from Python: ``rfflow.sweep("recipe=sft", "lr=1e-3,1e-4")`` trains, and returns the table of runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from rfflow.checkpointing.provenance import started_from_python
from rfflow.config import files
from rfflow.errors import RunFailed
from rfflow.launch.train import train

log = logging.getLogger(__name__)


def sweep(
    *overrides: str,
    config_dir: str | Path | None = None,
    config_name: str = "config",
    task: Callable[[DictConfig], Any] = train,
) -> Any:
    """Train all configurations of a sweep, as ``python -m rfflow --multirun`` does with these words.

    Args:
        overrides: as on the command line; ``recipe=sft`` needs no plus here.
        config_dir: the folder of another app's configuration; by default rfflow's own.
        config_name: its root file.
        task: the app's function, one that returns :func:`rfflow.run`.

    Returns:
        A ``pandas.DataFrame`` with a row a run, and with ``.best``, ``.load(n)`` and ``.curves()``:
        :class:`rfflow.results.runs_table.RunsTable`. Runs that failed are in the table too (``state``, ``error``).

    Raises:
        ConfigError: before any training, if one of the configurations cannot be.
    """
    from rfflow.config.files import CONF

    files.install()
    words = [f"+{word}" if word.startswith("recipe=") else word for word in files.escaped_words(overrides)]
    instance = GlobalHydra.instance()
    before, config_before = instance.hydra, HydraConfig.instance().cfg
    instance.clear()
    try:
        folder = str(Path(config_dir).absolute() if config_dir else CONF)
        hydra = Hydra.create_main_hydra2("rfflow", create_config_search_path(folder))
        with contextlib.nullcontext() if task is train else started_from_python():
            root = _sweep(hydra, config_name, words, task)
    finally:
        instance.clear()
        instance.hydra, HydraConfig.instance().cfg = before, config_before
    from rfflow.results.runs_table import table_of

    return table_of(root)


def _sweep(hydra: Hydra, config_name: str, overrides: list[str], task: Callable[[DictConfig], Any]) -> Path:
    config = hydra.compose_config(config_name, overrides, RunMode.MULTIRUN, with_log_configuration=False)
    with open_dict(config.hydra):
        config.hydra.sweep.dir = str(config.hydra.sweep.dir)  # with the time of now in it, which must not move on
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name=config_name)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
    arguments: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    try:
        sweeper.sweep(arguments=arguments)
    except RunFailed as error:  # the others have trained to their ends, and the table says what became of this one
        log.error("%s", error)
    callbacks.on_multirun_end(config=config, config_name=config_name)
    return Path(config.hydra.sweep.dir)
