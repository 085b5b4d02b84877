"""The sweep of a search: asks for configurations, has them trained together, and asks for more as runs end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from rfflow.config.references import resolved
from rfflow.config.spec import Objective
from rfflow.errors import ConfigError
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.search.samplers import read_search
from rfflow.search.space import read_space
from rfflow.search.study import Search

if TYPE_CHECKING:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

log = logging.getLogger(__name__)


def make_search(config: DictConfig, config_loader: ConfigLoader, words: Sequence[str]) -> Search | None:
    """Return the search that a sweep asks for; None where it is a grid.

    Raises:
        ConfigError: if the section ``search`` or the space is wrong.
    """
    spec = read_search(resolved(config.search) if config.get("search") else None)
    overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(list(words))
    sweeps = [override for override in overrides if override.is_sweep_override()]
    if spec is None or spec.sampler == "grid":
        for override in sweeps:
            if not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line} is an interval, which a grid cannot go through. Choose a search, such as "
                    "search=tpe, or list the values: lr=1e-4,3e-4,1e-3."
                )
        return None
    if sweeps and all(isinstance(value := override.value(), ChoiceSweep) and value.simple_form for override in sweeps):
        log.info("Only lists to go through: this is a grid. Write lr=choice(...) to have it searched.")
        return None
    space = read_space(overrides)
    if not space.dimensions:
        raise ConfigError(
            "There is nothing to search: no override is a sweep. Give one: lr=tag(log,interval(1e-5,1e-2))"
        )
    return Search(space, spec, _journal(config), spec.objectives or (_objective(config),))


def run_search(sweeper: BasicSweeper, search: Search) -> list[Sequence[JobReturn]]:
    """Train until the budget is spent.

    Under our launcher runs are told, and others asked for, while the rest goes on; under another one ``n_trials`` are
    asked for, told and followed by as many.
    """
    assert sweeper.config is not None and sweeper.launcher is not None
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, folder / "multirun.yaml")
    refill = Refill(search)
    if hasattr(sweeper.launcher, "refill"):
        sweeper.launcher.refill = refill
    returns: list[Sequence[JobReturn]] = []
    done = 0 if search.earlier else search.asked
    earlier, refill.numbers = search.earlier, [one.run for one in search.earlier if one.run is not None]
    while asked := earlier or search.ask(search.spec.n_trials):
        earlier = []
        batch = [list(one.overrides) for one in asked]
        begun = time.perf_counter()
        sweeper.validate_batch_is_legal(batch)
        log.debug("Validated %d jobs in %.2f seconds", len(batch), time.perf_counter() - begun)
        refill.expects(one.trial for one in asked)
        results = sweeper.launcher.launch(batch, initial_job_idx=done)
        for one, result in zip(asked, results[: len(asked)], strict=True):
            search.tell(one.trial, _values(search, result))
        done += len(results)
        returns.append(results)
    _raise_if_all_failed(returns)
    _say(search)
    return returns


class Refill:
    """Between two turns of the engine: tells what has ended, and asks for as many again."""

    def __init__(self, search: Search):
        self._search = search
        self.numbers: list[int] = []
        """Of the runs that are launched next, where they had some before."""
        self._coming: list[int] = []
        self._trials: dict[int, int] = {}
        """Trials by run."""
        self._told: set[int] = set(search.joined())
        self._pruned: set[int] = set(search.pruned())
        """Runs that were told as stopped."""
        self._ranks: dict[int, list[float | None]] = {}

    def expects(self, trials: Any) -> None:
        """Say which trials the jobs are that are launched next."""
        self._coming += trials

    def started(self, number: int) -> None:
        """Say the number of the run that the next of the expected trials became."""
        trial = self._coming.pop(0)
        self._trials[number] = trial
        if self._search.is_open(trial):
            self._search.note(trial, "run", number)
        else:
            self._told.add(number)

    def number_of(self, count: int, first: int) -> list[int]:
        """Return the numbers of the runs that are launched now."""
        numbers, self.numbers = self.numbers, []
        return numbers or list(range(first, first + count))

    def failed(self) -> None:
        """Say that the next of the expected trials became no run."""
        self._search.tell(self._coming.pop(0), None)

    def next(self, runs: Sequence[Run]) -> list[tuple[str, ...]]:
        """Tell what has ended, and return the overrides of those that take their places."""
        live = sum(run.state.is_live for run in runs)
        room = min(self._search.spec.n_trials - live, self._search.budget - self._search.asked)
        self.settle(runs, also_stopped=room > 0)
        if room <= 0:
            return []
        asked = self._search.ask(room)
        self.expects(one.trial for one in asked)
        return [one.overrides for one in asked]

    def settle(self, runs: Sequence[Run], *, also_stopped: bool = True) -> None:
        """Report curves, and tell runs that have ended; a stopped run is told where somebody is to learn from it."""
        for run in runs:
            values = self._record(run)
            trial = self._trials.get(run.number)
            if trial is None:
                self._join(run, runs, values, also_stopped=also_stopped)
                continue
            if run.number in self._told:
                self._tell_again(run, trial, values)
                continue
            self._search.report(trial, values)
            if run.state is RunState.COMPLETED:
                self._tell(run, trial, self._last(run))
            elif run.state in (RunState.FAILED, RunState.DELETED):
                self._tell(run, trial, None)
            elif run.state is RunState.STOPPED and also_stopped:
                self._tell(run, trial, None, is_stopped=True)

    def _tell_again(self, run: Run, trial: int, values: Sequence[float | None]) -> None:
        """Add the end of a run that went on after it had been told as stopped; what was told cannot be changed."""
        if run.number in self._pruned and run.state is RunState.COMPLETED:
            self._pruned.remove(run.number)
            notes = {"run": run.number, "resumed": trial, "overrides": list(run.overrides)}
            self._search.add(self._search.params(trial), self._last(run), notes, curve=values)

    def _tell(self, run: Run, trial: int, values: Any, *, is_stopped: bool = False) -> None:
        self._told.add(run.number)
        if is_stopped:
            self._pruned.add(run.number)
        self._search.tell(trial, values, is_stopped=is_stopped)

    def _join(self, run: Run, runs: Sequence[Run], values: Sequence[float | None], *, also_stopped: bool) -> None:
        """Let a clone that has ended or was stopped join the study, its parent noted."""
        is_stopped = run.state is RunState.STOPPED and also_stopped
        goes_on = run.number in self._pruned and run.state is RunState.COMPLETED
        is_news = run.number not in self._told and (run.state.is_final or is_stopped)
        if run.parent is None or not (goes_on or is_news):
            return
        self._told.add(run.number)
        by_number = {other.number: other for other in runs}
        line, ancestor = [run], run
        while ancestor.parent is not None and ancestor.number not in self._trials:
            ancestor = by_number[ancestor.parent]
            line.append(ancestor)
        if ancestor.number not in self._trials:
            return
        params = self._search.params(self._trials[ancestor.number])
        for member in reversed(line[:-1]):
            for override in member.overrides:
                key, _, value = override.partition("=")
                if key in params:
                    params[key] = _like(params[key], value)
        notes: dict[str, Any] = {"run": run.number, "parent": run.parent, "warm_start": run.is_warm}
        if goes_on:
            self._pruned.remove(run.number)
            notes["resumed"] = self._search.pruned_trial(run.number)
        elif is_stopped:
            self._pruned.add(run.number)
        last = self._last(run) if run.state in (RunState.COMPLETED, RunState.STOPPED) else [None]
        notes["overrides"] = list(run.overrides)
        self._search.add(params, last, notes, curve=values, is_stopped=is_stopped)

    def _last(self, run: Run) -> list[float | None]:
        if run.state is RunState.COMPLETED:
            self._search.settle(run.metrics)
        return self._search.values(run.metrics)

    def _record(self, run: Run) -> list[float | None]:
        """Return the objective at each chunk done."""
        known = self._ranks.setdefault(run.number, [])
        known += [self._search.values(result.metrics)[0] for result in run.chunks[len(known) :]]
        return known


def _values(search: Search, result: JobReturn) -> list[float | None] | None:
    if result.status is JobStatus.FAILED:
        log.warning("Job %s failed: %s", " ".join(result.overrides or ()), result._return_value)
        return None
    value = result._return_value
    values = list(value) if isinstance(value, Sequence) else [value]
    if len(values) != len(search.objectives) or not all(isinstance(v, (int, float)) for v in values):
        return None
    return values


def _raise_if_all_failed(returns: Sequence[Sequence[JobReturn]]) -> None:
    results = [result for batch in returns for result in batch]
    if results and all(result.status is JobStatus.FAILED for result in results):
        _ = results[0].return_value  # raises what it raised


def _say(search: Search) -> None:
    trials = search.study.get_trials(deepcopy=False)
    if len(search.objectives) == 1 and any(trial.state.name == "COMPLETE" for trial in trials):
        best = search.study.best_trial
        keys = tuple(f"{key}=" for key in search.space.dimensions)
        words = [word for word in best.user_attrs.get("overrides", ()) if word.startswith(keys)]
        log.info("Best of the search: %s (%s %.4g)", " ".join(words), *_named(search))


def _named(search: Search) -> tuple[str, float]:
    return search.objectives[0].metric, search.study.best_value


def _objective(config: DictConfig) -> Objective:
    section = config.get("objective")
    if not section:
        return Objective("value", "minimize")
    return Objective(**resolved(section))


def _journal(config: DictConfig) -> Path:
    return ExperimentPaths(str(config.hydra.sweep.dir)).root / "study.journal"


def _like(before: Any, text: str) -> Any:
    try:
        return type(before)(text)
    except ValueError:
        return text
