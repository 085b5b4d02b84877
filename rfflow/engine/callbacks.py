"""The Fabric of an experiment: it finds the device, saves and loads, and carries loggers and callbacks."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric import Fabric

from rfflow.config.spec import ExperimentSpec, Node
from rfflow.config.targets import check_node, import_object
from rfflow.errors import ConfigError, EngineError
from rfflow.worker.device import make_device_fabric

log = logging.getLogger(__name__)


def make_fabric(spec: ExperimentSpec) -> Fabric:
    """Make the Fabric that finds the device, saves and loads, and carries loggers and callbacks.

    Loggers that have hooks (``on_chunk_end``, ...) hear them too.

    Raises:
        ConfigError: if a logger or callback cannot be made, or the device is not there.
    """
    loggers = [_instantiate(node, f"loggers.{name}") for name, node in spec.loggers.items()]
    callbacks = [_instantiate(node, f"callbacks.{name}") for name, node in spec.callbacks.items()]
    hearing = [logger for logger in loggers if any(name.startswith("on_") for name in dir(logger))]
    return make_device_fabric(spec, loggers=loggers, callbacks=[*hearing, *callbacks])


def _instantiate(node: Node, where: str) -> Any:
    import_object(str(node.get("_target_")), f"{where}._target_")  # for its better message
    check_node(node, where)
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: cannot make {node.get('_target_')!r}: {error.__cause__ or error}") from error


class Audience:
    """Everybody who hears of an experiment. Whoever fails costs a warning: the others hear, and training goes on.

    Only what is meant to end the experiment does: an :class:`~rfflow.errors.EngineError`.
    """

    def __init__(self, fabric: Fabric):
        """Tell nobody yet.

        Args:
            fabric: carries the callbacks and loggers.
        """
        self._fabric = fabric
        self._failures: Counter[tuple[str, str]] = Counter()
        """How often each has failed in each hook."""
        self._named: dict[Any, frozenset[str]] = {}
        """The arguments that hooks name, by their functions: to look takes as long as most of them do."""

    def call(self, hook: str, **kwargs: Any) -> None:
        """Call a hook of every callback, as ``Fabric.call`` does, with the arguments that it names."""
        for callback in self._fabric._callbacks:
            with self._warned(callback, hook):
                if callable(method := getattr(callback, hook, None)):
                    method(**self._named_by(method, kwargs))

    def _named_by(self, method: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        function = getattr(method, "__func__", None)
        if not inspect.isfunction(function):  # whatever else can be called may name others the next time
            return self._fabric._filter_kwargs_for_callback(method, kwargs)
        key = function, tuple(kwargs)
        if key not in self._named:
            self._named[key] = frozenset(self._fabric._filter_kwargs_for_callback(method, kwargs))
        return {name: value for name, value in kwargs.items() if name in self._named[key]}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Give metrics to every logger."""
        for logger in self._fabric.loggers:
            with self._warned(logger, "log_metrics"):
                logger.log_metrics(metrics=dict(metrics), step=step)

    def save(self) -> None:
        """Let every logger write what it holds."""
        for logger in self._fabric.loggers:
            with self._warned(logger, "save"):
                logger.save()

    def finalize(self, status: str) -> None:
        """Let every logger close what it has, once every callback has heard that the experiment has ended.

        Args:
            status: ``"success"``, or ``"failed"`` where it ends by an exception.
        """
        for logger in self._fabric.loggers:
            with self._warned(logger, "finalize"):
                logger.finalize(status)

    def sum_up(self) -> None:
        """Say once more, at the end, who has failed: the first time may be days ago."""
        for who in dict.fromkeys(name for name, _ in self._failures):
            hooks = {hook: times for (name, hook), times in self._failures.items() if name == who}
            if (times := sum(hooks.values())) > 1:
                log.warning("%s failed %d times, in %s", who, times, ", ".join(hooks))
        self._failures.clear()

    @contextlib.contextmanager
    def _warned(self, hearer: object, hook: str) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            name = type(hearer).__name__
            self._failures[name, hook] += 1
            if self._failures[name, hook] == 1:
                # What a disk or a terminal says needs no trace; a mistake in somebody's code does.
                trace = None if isinstance(error, OSError) else error
                kind = type(error).__name__
                log.warning("%s failed in %s, and all else goes on: %s: %s", name, hook, kind, error, exc_info=trace)


def namespaced(run: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as loggers get them: ``3/train/loss``, ``3/eval/loss``."""
    return {
        f"{run}/eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"{run}/train/{key}": value
        for key, value in metrics.items()
    }
