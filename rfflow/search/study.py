"""One search: Optuna's study in the experiment's own directory, asked for configurations and told what came of them."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from rfflow.config.spec import Objective
from rfflow.search.samplers import SearchSpec, holding, make_sampler
from rfflow.search.space import Space

log = logging.getLogger(__name__)

_DUPLICATES = 20
"""Repetitions of one question, in a space too large to list, before a repetition is let through."""


@dataclass(frozen=True)
class Asked:
    """A configuration to train."""

    trial: int
    overrides: tuple[str, ...]
    run: int | None = None
    """The run that it became, where the search goes on with one of a process that is gone."""


@dataclass
class _Open:
    trial: Trial
    reported: int = 0
    """Chunks whose values the study knows."""


@dataclass
class Search:
    """Asks and tells; knows runs by their numbers only.

    The study lies in ``journal`` as Optuna's journal file: ``optuna-dashboard FILE`` shows it.
    """

    space: Space
    spec: SearchSpec
    journal: Path
    objectives: Sequence[Objective]
    name: str = "rfflow"
    _open: dict[int, _Open] = field(default_factory=dict)
    """Trials that have not been told, by their numbers."""
    _seen: set[tuple[Any, ...]] = field(default_factory=set)
    asked: int = 0
    earlier: list[Asked] = field(default_factory=list)
    """What a process that is gone had asked for and launched."""
    _is_settled: bool = False
    """Whether it is known what a run has to show."""
    _unlaunched: list[Asked] = field(default_factory=list)
    """What it had asked for only."""

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.journal))),
            sampler=make_sampler(self.spec, len(self.objectives)),  # so that what is wrong with it is said first
            study_name=self.name,
            directions=[objective.direction for objective in self.objectives],
            load_if_exists=True,
        )
        if any(trial.state is TrialState.COMPLETE for trial in self.study.get_trials(deepcopy=False)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._settle_on(self.study.metric_names or [])
        self._name_metrics()
        self._take_over()
        budget = self.spec.budget or self.spec.n_trials
        self.budget = int(min(max(budget, self.spec.n_trials), self.space.size))
        if budget > self.space.size:
            log.warning("The space has %d configurations, so %d are trained.", self.space.size, self.budget)

    def values(self, metrics: Mapping[str, float]) -> list[float | None]:
        """Return the values of the objectives."""
        if self._is_settled:
            return [metrics.get(objective.metric) for objective in self.objectives]
        return [objective.value(metrics) for objective in self.objectives]

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Keep to what the first run that ends has: its training loss, say, where nothing is evaluated.

        All trials are compared with each other, so all of them are told the same thing, and it is called by its name.
        """
        if not self._is_settled:
            self._settle_on([objective.standing([metrics]).metric for objective in self.objectives])
            self._name_metrics()

    def _settle_on(self, names: Sequence[str]) -> None:
        self._is_settled = True
        pairs = zip(self.objectives, names, strict=False)
        self.objectives = [replace(objective, metric=name) for objective, name in pairs] or self.objectives

    def _name_metrics(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the names are for the dashboard only
            self.study.set_metric_names([objective.metric for objective in self.objectives])

    def is_open(self, trial: int) -> bool:
        """Whether the study waits to be told of a trial."""
        return trial in self._open

    def _take_over(self) -> None:
        """Go on with the study of a process that is gone: its runs are asked for again, under their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        if trials and not self._is_repeatable:
            log.warning(
                "Configurations that the search asks for from now on are not those that it would have asked for "
                "without the interruption: %s.",
                "search.seed is null" if self.spec.seed is None else "search.sampler is not one of rfflow's own",
            )
        for trial in trials:
            key, run = self._key(trial.params), trial.user_attrs.get("run")
            overrides = tuple(self.space.overrides(trial.params)) if None not in key else ()
            if run is not None and not {"parent", "resumed"} & set(trial.user_attrs):
                self.earlier.append(Asked(trial.number, tuple(trial.user_attrs["overrides"]), run))
            if trial.state is TrialState.RUNNING:
                opened = self._again(trial)
                if run is not None:
                    self._open[trial.number] = _Open(opened, len(trial.intermediate_values))
                elif overrides and key not in self._seen and "duplicate" not in trial.user_attrs:
                    self._open[trial.number] = _Open(opened)
                    self._unlaunched.append(Asked(trial.number, overrides))
                else:  # the process ended in the middle of asking
                    opened.set_user_attr("void", True)
                    self.study.tell(opened, state=TrialState.FAIL)
            self._seen.add(key)
        self.earlier.sort(key=lambda asked: asked.run or 0)
        to_ask = {asked.trial for asked in self._unlaunched}
        # Those without a run too: jobs of an application that trains by itself, and those that did not compose.
        self.asked = sum(
            "overrides" in trial.user_attrs
            and trial.number not in to_ask
            and not {"parent", "resumed", "void"} & set(trial.user_attrs)
            for trial in trials
        )

    def _again(self, trial: FrozenTrial) -> Trial:
        storage = self.study._storage
        return Trial(self.study, storage.get_trial_id_from_study_id_trial_number(self.study._study_id, trial.number))

    @property
    def _is_repeatable(self) -> bool:
        """Whether what is asked for follows from the seed and the study alone."""
        return self.spec.seed is not None and isinstance(self.spec.sampler, str)

    def ask(self, count: int) -> list[Asked]:
        """Return so many new configurations, or as many as are left of the budget."""
        asked: list[Asked] = []
        for _ in range(min(count, self.budget - self.asked)):
            if self._unlaunched:
                asked.append(self._unlaunched.pop(0))
                self.asked += 1
                continue
            trial = self._new()
            self._seen.add(self._key(trial.params))
            self._open[trial.number] = _Open(trial)
            overrides = tuple(self.space.overrides(trial.params))
            trial.set_user_attr("overrides", list(overrides))
            asked.append(Asked(trial.number, overrides))
            self.asked += 1
        return asked

    def note(self, trial: int, key: str, value: Any) -> None:
        """Write something beside a trial that has not been told, for people to read."""
        self._open[trial].trial.set_user_attr(key, value)

    def report(self, trial: int, values: Sequence[float | None]) -> None:
        """Say which values of the objective a trial has shown at its chunks so far."""
        opened = self._open.get(trial)
        if opened is None or len(self.objectives) > 1:  # Optuna has no curves for several objectives
            return
        for chunk in range(opened.reported, len(values)):
            value = values[chunk]
            if value is not None and math.isfinite(value):
                opened.trial.report(value, chunk + 1)
        opened.reported = len(values)

    def tell(self, trial: int, values: Sequence[float | None] | None, *, is_stopped: bool = False) -> None:
        """Say what came of a trial: no values, or some that are no numbers, are a failure."""
        opened = self._open.pop(trial, None)
        if opened is None:
            return
        if is_stopped:
            self.study.tell(opened.trial, state=TrialState.PRUNED)
        elif values is None or not all(value is not None and math.isfinite(value) for value in values):
            self.study.tell(opened.trial, state=TrialState.FAIL)
        else:
            self.study.tell(opened.trial, [float(value) for value in values if value is not None])

    def add(
        self,
        params: Mapping[str, Any],
        values: Sequence[float | None],
        notes: Mapping[str, Any],
        *,
        curve: Sequence[float | None] = (),
        is_stopped: bool = False,
    ) -> None:
        """Add a configuration that somebody else has tried, such as a clone; what is not in the space is left out.

        Args:
            params: by the keys of the space.
            values: of the objectives, at the end.
            notes: for people to read.
            curve: the objective at each chunk; there is none of several objectives.
            is_stopped: whether it was stopped, so that its curve is all there is.
        """
        known: dict[str, Any] = {}
        dimensions: dict[str, BaseDistribution] = {}
        for key, value in params.items():
            dimension = holding(self.space.dimensions[key], value) if key in self.space.dimensions else None
            if dimension is not None:
                known[key], dimensions[key] = value, dimension
        has_curve = len(self.objectives) == 1
        is_good = all(value is not None and math.isfinite(value) for value in values) and (has_curve or not is_stopped)
        steps = {chunk: value for chunk, value in enumerate(curve, 1) if value is not None and math.isfinite(value)}
        state = TrialState.PRUNED if is_stopped else TrialState.COMPLETE if is_good else TrialState.FAIL
        trial: FrozenTrial = create_trial(
            state=state,
            values=[float(value) for value in values if value is not None] if is_good else None,
            params=known,
            distributions=dimensions,
            user_attrs=dict(notes),
            intermediate_values=steps if has_curve else None,
        )
        self.study.add_trial(trial)
        self._seen.add(self._key(known))

    def joined(self) -> list[int]:
        """Return the clones that a process that is gone has added, by the numbers of their runs."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial.user_attrs["run"] for trial in trials if "parent" in trial.user_attrs]

    def pruned(self) -> list[int]:
        """Return the runs that it told as stopped, and whose ends have not been added since."""
        trials = self.study.get_trials(deepcopy=False)
        ended = {trial.user_attrs["resumed"] for trial in trials if "resumed" in trial.user_attrs}
        pruned = [t for t in trials if t.state is TrialState.PRUNED and t.number not in ended and "run" in t.user_attrs]
        return [trial.user_attrs["run"] for trial in pruned]

    def pruned_trial(self, run: int) -> int:
        """Return the trial with which a run was told as stopped."""
        trials = self.study.get_trials(deepcopy=False)
        return next(t.number for t in trials if t.state is TrialState.PRUNED and t.user_attrs.get("run") == run)

    def params(self, trial: int) -> dict[str, Any]:
        """Return the values that a trial was asked with."""
        return dict(self.study.get_trials(deepcopy=False)[trial].params)

    def _new(self) -> Trial:
        """Ask for a configuration that has not been asked for before."""
        for _ in range(_DUPLICATES):
            trial, draw = self._draw()
            if self._key(trial.params) not in self._seen:
                return trial
            trial.set_user_attr("duplicate", True)
            self.study.tell(trial, state=TrialState.FAIL)
            left = [params for params in self.space.all() if self._key(params) not in self._seen]
            if left:
                self.study.enqueue_trial(draw.choice(left))
        return self._draw()[0]

    def _draw(self) -> tuple[Trial, random.Random]:
        """Ask a sampler made for this question, and return what else is left to chance here.

        What a sampler has learnt is in the study, and its random state follows from the seed and the number of the
        question: so a search that goes on in another process asks for what it would have asked for in this one.
        """
        number = sum("void" not in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))
        draw = random.Random(None if self.spec.seed is None else f"{self.spec.seed} {number}")
        if self._is_repeatable:
            self.study.sampler = make_sampler(replace(self.spec, seed=draw.getrandbits(32)), len(self.objectives))
        return self.study.ask(dict(self.space.dimensions)), draw

    def _key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(params.get(key) for key in self.space.dimensions)
