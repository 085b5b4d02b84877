"""Whether a clone may come into an experiment: it brings no code, and nothing to load, that nobody has named there."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rfflow.config.overrides import on_top
from rfflow.config.references import resolved
from rfflow.control.code import Named
from rfflow.errors import ConfigError

_of_the_experiment: ContextVar[bool] = ContextVar("rfflow_op_of_the_experiment", default=False)


@contextlib.contextmanager
def as_the_experiment() -> Iterator[None]:
    """Say that the clones made inside are asked for by the experiment itself: its policy, which is code of it."""
    token = _of_the_experiment.set(True)
    try:
        yield
    finally:
        _of_the_experiment.reset(token)


def is_of_the_experiment() -> bool:
    """Whether clones are asked for by the experiment itself."""
    return _of_the_experiment.get()


class Admission:
    """Remembers what an experiment was started with, and compares what a clone's configuration has come to be.

    Args:
        config: the configuration that the sweep (or the single run) was started with.
        config_loader: Hydra's.
        load: composes the configuration of a clone of that number from all of its overrides.
    """

    def __init__(
        self, config: DictConfig, config_loader: ConfigLoader, load: Callable[[int, Sequence[str]], DictConfig]
    ):
        self._choices: Mapping[str, Any] = config.hydra.runtime.choices
        self._config_loader: Any = config_loader
        self._load = load
        self._named = Named()

    def started_with(self, config: Mapping[str, Any]) -> None:
        """Take note of the configuration of a run that no op has asked for: what it names, clones may name."""
        self._named.add(config)

    def check(self, config: DictConfig, number: int, parent: Sequence[str], own: Sequence[str]) -> None:
        """Check that a clone names nothing else that could be imported or loaded.

        What its parent's configuration makes of the config groups that it chooses is named by those who wrote the
        groups, references to other values included; so that is composed too, where the first look does not do.

        Args:
            config: the clone's.
            number: the clone's.
            parent: its parent's overrides.
            own: what the op has on top of them.

        Raises:
            ConfigError: naming the key and its value.
        """
        if is_of_the_experiment():
            return
        with _as_hydra_config(config) as task:
            values = resolved(task)
        try:
            self._named.check(values)
        except ConfigError:
            named = copy.deepcopy(self._named)
            with contextlib.suppress(HydraException, OmegaConfBaseException):
                named.add(self._made_of_groups(number, on_top(parent, list(filter(self._chooses_a_group, own)))))
            named.check(values)

    def _chooses_a_group(self, text: str) -> bool:
        """Whether an override names a config of a group, or none, and leaves it in its place."""
        override = OverridesParser.create().parse_overrides([text])[0]
        key = override.get_key_element().lstrip("+~")
        is_in_place = override.package is None or key in self._choices
        is_group = self._config_loader.repository.group_exists(override.key_or_group)
        return is_in_place and is_group and not isinstance(override.value(), dict)

    def _made_of_groups(self, number: int, overrides: Sequence[str]) -> dict[str, Any]:
        with _as_hydra_config(self._load(number, overrides)) as task:  # a value may be missing that the op gives
            made: Any = OmegaConf.to_container(task, resolve=True)
            return dict(made)


@contextlib.contextmanager
def _as_hydra_config(config: DictConfig) -> Iterator[DictConfig]:
    """Yield what a job's function would get, as long as ``HydraConfig`` is the job's."""
    with open_dict(config):
        # As Hydra will set it when the job runs.
        config.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute())
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        task = copy.deepcopy(config)
        with open_dict(task):
            del task["hydra"]
        yield task
    finally:
        HydraConfig.instance().cfg = before
