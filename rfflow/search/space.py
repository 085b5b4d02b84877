"""From Hydra's sweep grammar to the space that Optuna samples.

==================================  =====================================================
``interval(1e-5, 1e-2)``            any number from 1e-5 up to, and without, 1e-2
``tag(log, interval(1e-5, 1e-2))``  the same, evenly spread over the orders of magnitude
``int(interval(4, 65))``            whole numbers from 4 to 64; with the tag log, too
``range(1, 10, step=3)``            1, 4, 7; with the tag log where the step is 1
``choice(4, 8, 16)``, ``4,8,16``    one of them
``peft=lora,lora_small``            one of a group's configs; ``glob(lora*)`` as well
==================================  =====================================================
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rfflow.errors import ConfigError, nearest

_MOST_LISTED = 100_000
"""Configurations of a space that are told apart one by one."""


@dataclass(frozen=True)
class Space:
    """What is varied, and what stands for all."""

    fixed: tuple[str, ...]
    """Overrides of every job."""
    dimensions: Mapping[str, BaseDistribution]
    """By the key as it stands in the override, a plus included."""
    order: tuple[str, ...]
    """The keys of all overrides, in the order given."""

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return one job's overrides, in the order in which the sweep names them."""
        fixed = {override.partition("=")[0]: override for override in self.fixed}
        return [
            fixed[key] if key in fixed else f"{key}={_written(params[key], self.dimensions[key])}" for key in self.order
        ]

    @property
    def size(self) -> float:
        """How many configurations there are; infinity where a number may be any."""
        return math.prod(_size(dimension) for dimension in self.dimensions.values())

    def all(self) -> list[dict[str, Any]]:
        """Return every configuration of a space that is small enough to list, else none."""
        if self.size > _MOST_LISTED:
            return []
        values = [_values(dimension) for dimension in self.dimensions.values()]
        return [dict(zip(self.dimensions, combination, strict=True)) for combination in itertools.product(*values)]


def read_space(overrides: Sequence[Override]) -> Space:
    """Return the space that the overrides of a sweep describe.

    Raises:
        ConfigError: if an interval is empty, or its logarithm does not exist.
    """
    fixed: dict[str, str] = {}
    dimensions: dict[str, BaseDistribution] = {}
    order: list[str] = []
    for override in overrides:
        key = override.get_key_element()
        order.append(key)
        fixed.pop(key, None)  # the last one holds, as on any command line of Hydra's
        dimensions.pop(key, None)
        if override.is_sweep_override():
            dimensions[key] = _dimension(override)
        else:
            fixed[key] = key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"
    return Space(tuple(fixed.values()), dimensions, tuple(dict.fromkeys(order)))


def _dimension(override: Override) -> BaseDistribution:
    value = override.value()
    text = override.input_line or override.key_or_group
    tags = value.tags if isinstance(value, Sweep) else set()
    for tag in sorted(tags - {"log"}):
        raise ConfigError(f"{text}: the tag {tag!r} means nothing to the search.{nearest(tag, ['log'])} Allowed: log.")
    is_log = "log" in tags
    if isinstance(value, IntervalSweep):
        return _interval(value, is_log, text)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        is_whole = value.step > 0 and all(isinstance(number, int) for number in numbers)
        if is_log and numbers and not (is_whole and value.step == 1 and numbers[0] > 0):
            raise ConfigError(
                f"{text}: only whole numbers from 1 up, in steps of 1, can be spread over the orders of magnitude. "
                "Leave the tag log out, or give an interval: tag(log,interval(0.1,10))."
            )
        if numbers and is_whole:
            return IntDistribution(int(numbers[0]), int(numbers[-1]), log=is_log, step=int(value.step))
    elif is_log:
        raise ConfigError(
            f"{text}: a list has no orders of magnitude. Leave the tag log out, or give an interval: "
            "tag(log,interval(1e-5,1e-2))."
        )
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise ConfigError(f"{text} holds no value.")
    return CategoricalDistribution(choices)


def _interval(value: IntervalSweep, is_log: bool, text: str) -> BaseDistribution:
    start, end = value.start, value.end
    assert start is not None and end is not None
    if start >= end:
        raise ConfigError(f"{text} is empty: an interval goes from its smaller end up to, and without, its larger one.")
    if is_log and start <= 0:
        raise ConfigError(f"{text} begins at {start:g}, and a logarithm needs numbers above 0.")
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end - 1, log=is_log)
    return FloatDistribution(float(start), math.nextafter(float(end), float(start)), log=is_log)


def _size(dimension: BaseDistribution) -> float:
    if isinstance(dimension, CategoricalDistribution):
        return len(dimension.choices)
    if isinstance(dimension, IntDistribution):
        return (dimension.high - dimension.low) // dimension.step + 1
    return math.inf


def _values(dimension: BaseDistribution) -> list[Any]:
    if isinstance(dimension, CategoricalDistribution):
        return list(dimension.choices)
    whole = cast(IntDistribution, dimension)
    return list(range(whole.low, whole.high + 1, whole.step))


def _written(value: Any, dimension: BaseDistribution) -> str:
    """Write a number with six digits, so that people can read it; it stays in its interval."""
    if isinstance(value, float) and isinstance(dimension, FloatDistribution):
        short = float(f"{value:.6g}")
        return repr(short if dimension.low <= short <= dimension.high else value)
    return str(value)
