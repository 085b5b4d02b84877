"""Which runs may have a slot together; whether adapters gain anything by it is for the worker to find out."""

from __future__ import annotations

from collections.abc import Mapping

from rfflow.config.quotas import asked_of
from rfflow.config.spec import EvalSpec, ExperimentSpec, RunSpec, TrainSpec


def companions(first: RunSpec, waiting: Mapping[int, RunSpec], experiment: ExperimentSpec) -> list[int]:
    """Return the numbers of those that go together with a run, in their order.

    Args:
        first: the run that has the slot.
        waiting: those that would have it next, by number.
        experiment: what all have in common.
    """
    if _asks_server(first):  # it leaves the device alone while it waits for answers
        return [number for number, spec in waiting.items() if _asks_server(spec)]
    if experiment.fusion == "off" or (base := _base_of(first)) is None:
        return []
    return [number for number, spec in waiting.items() if _base_of(spec) == base]


def _asks_server(spec: RunSpec) -> bool:
    """Whether a run is an evaluation that a server answers."""
    return isinstance(spec, EvalSpec) and asked_of(spec.evaluation.generator) is not None


def _base_of(spec: RunSpec) -> str | None:
    """Return the key of the base of which a run trains an adapter; ``None`` where it does something else."""
    return spec.model.key if isinstance(spec, TrainSpec) and spec.peft is not None else None
