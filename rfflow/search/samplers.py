"""The samplers of a search, by name, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from rfflow.config.experiment import read_objectives
from rfflow.config.spec import Node, Objective
from rfflow.config.targets import check_node
from rfflow.errors import ConfigError, nearest

SAMPLERS = ("random", "tpe", "gp", "cmaes", "nsga2", "grid")


@dataclass(frozen=True)
class SearchSpec:
    """The section ``search`` of the configuration."""

    sampler: str | Node = "tpe"
    """One of ``SAMPLERS``, or an Optuna sampler by ``_target_``."""
    n_trials: int = 10
    """Configurations that are asked for at once and trained together."""
    budget: int | None = None
    """Configurations in all; beyond ``n_trials`` they learn from those before. None is ``n_trials``."""
    seed: int | None = 42
    """Of the sampler; None is another one every time."""
    objectives: tuple[Objective, ...] = ()
    """Several to weigh against each other; empty takes the experiment's one."""


def read_search(section: Mapping[str, Any] | None) -> SearchSpec | None:
    """Read and check the section.

    Raises:
        ConfigError: with what is allowed.
    """
    if not section:
        return None
    allowed = ("sampler", "n_trials", "budget", "seed", "objectives")
    for key in section:
        if key not in allowed:
            raise ConfigError(f"search.{key} is not a setting.{nearest(key, allowed)} Allowed: {', '.join(allowed)}.")
    sampler = section.get("sampler", "tpe")
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ConfigError(f"search.sampler is {sampler!r}.{nearest(sampler, SAMPLERS)} Allowed: {', '.join(SAMPLERS)}.")
    n_trials, budget = section.get("n_trials", 10), section.get("budget")
    for name, value in (("n_trials", n_trials), ("budget", n_trials if budget is None else budget)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"search.{name} is {value!r}. Allowed: a whole number from 1 up.")
    seed = section.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise ConfigError(f"search.seed is {seed!r}. Allowed: a whole number from 0 to 2**32 - 1, or null.")
    return SearchSpec(sampler, n_trials, budget, seed, read_objectives(section))


def holding(dimension: BaseDistribution, value: Any) -> BaseDistribution | None:
    """Return a dimension that holds the value too, widened where it is one of numbers; None where there is none."""
    if isinstance(dimension, CategoricalDistribution):
        return dimension if value in dimension.choices else None
    if isinstance(dimension, FloatDistribution) and isinstance(value, (int, float)):
        return FloatDistribution(min(dimension.low, value), max(dimension.high, value), log=dimension.log)
    if isinstance(dimension, IntDistribution) and isinstance(value, int) and dimension._contains(value):
        return dimension
    return None


def make_sampler(spec: SearchSpec, objectives: int = 1) -> optuna.samplers.BaseSampler:
    """Return an Optuna sampler; those that learn begin with ``n_trials`` random points, which is what is asked at once.

    Raises:
        ConfigError: if it cannot be made, or does not go with several objectives.
    """
    samplers = optuna.samplers
    if isinstance(spec.sampler, Mapping):
        check_node(spec.sampler, "search.sampler")
        try:
            return instantiate(dict(spec.sampler))
        except InstantiationException as error:
            raise ConfigError(f"search.sampler: {error.__cause__ or error}") from error
    if objectives > 1 and spec.sampler == "cmaes":
        raise ConfigError("search.sampler is 'cmaes', which knows one objective only. Allowed: nsga2, tpe, gp, random.")
    match spec.sampler:
        case "tpe":
            # A trial that still trains counts as bad, so that two who are asked at once are not the same.
            return samplers.TPESampler(n_startup_trials=spec.n_trials, constant_liar=True, seed=spec.seed)
        case "gp":
            return samplers.GPSampler(n_startup_trials=spec.n_trials, seed=spec.seed)
        case "cmaes":
            return samplers.CmaEsSampler(
                n_startup_trials=spec.n_trials, seed=spec.seed, warn_independent_sampling=False
            )
        case "nsga2":
            return samplers.NSGAIISampler(population_size=max(2, spec.n_trials), seed=spec.seed)
    return samplers.RandomSampler(seed=spec.seed)
