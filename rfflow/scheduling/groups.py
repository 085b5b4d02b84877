"""Which runs may have a slot together; whether adapters gain anything by it is for the worker to find out."""

from __future__ import annotations

from collections.abc import Mapping

from rfflow.config.quotas import asked_of
from rfflow.config.spec import ExperimentSpec, RunSpec


def companions(first: RunSpec, waiting: Mapping[int, RunSpec], experiment: ExperimentSpec) -> list[int]:
    """Return the numbers of those that go together with a run, in their order.

    Args:
        first: the run that has the slot.
        waiting: those that would have it next, by number.
        experiment: what all have in common.
    """
    if _asks_server(first):  # it leaves the device alone while it waits for answers
        return [number for number, spec in waiting.items() if _asks_server(spec)]
    if experiment.fusion == "off" or not _may_fuse(first):
        return []
    return [number for number, spec in waiting.items() if _may_fuse(spec) and spec.model.key == first.model.key]


def _asks_server(spec: RunSpec) -> bool:
    """Whether a run is an evaluation that a server answers."""
    return spec.evaluation is not None and asked_of(spec.evaluation.generator) is not None


def _may_fuse(spec: RunSpec) -> bool:
    """Whether a run trains an adapter of a base that is there for all."""
    return spec.evaluation is None and spec.build is None and spec.peft is not None
