"""What the experiment has spent, and the runs that wait for more: a budget pauses it, instead of being overdrawn."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping

from rfflow.checkpointing.disk import resume_command
from rfflow.config.quotas import asked_of, key_for
from rfflow.errors import ConfigError, Paused, nearest
from rfflow.evals.items import paid_in
from rfflow.evals.judging import parted
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run

log = logging.getLogger(__name__)


class Money:
    """The money of one experiment."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._is_limited: dict[int, bool] = {}
        """Looked up once: it is asked for before every turn."""
        self._paused: dict[int, str] = {}
        """Why runs do not go on; who was paused last comes last."""

    def spent(self) -> dict[str, float]:
        """Return the USD that all runs have spent so far, whatever became of them, by the keys that have a budget."""
        limits = {key: limit for key, limit in self._experiment.spec.quotas.limits.items() if limit.usd is not None}
        found: defaultdict[str, float] = defaultdict(float)
        for run in self._experiment.runs if limits else ():
            keys = keys_of(run, limits)
            for section, usd in paid_in(run.paths.items).items() if keys else ():
                if section in keys:
                    found[keys[section]] += usd
        return dict(found)

    def check(self) -> None:
        """Look whether what is said of servers is about servers that are asked.

        Raises:
            ConfigError: for a key that is nearly the name of a model, or of a server, of which nothing is said.
        """
        asked = {where for run in self._experiment.runs for where in _asked(run).values()}
        names = {name for where in asked for name in _names(*where)}
        quotas = self._experiment.spec.quotas
        sections: dict[str, Mapping[str, object]] = {"limits": quotas.limits, "prices": quotas.prices}
        for section, keys in sections.items():
            open = {name for where in asked if key_for(keys, *where) is None for name in _names(*where)}
            for key in sorted(keys.keys() - names):
                same = {name for name in open if _digits(name) == _digits(key)}  # 8b is not 70b badly written
                if near := nearest(key, sorted(same), cutoff=0.8):
                    raise ConfigError(f"{section}.{key} is about nobody: {_said(asked)}.{near}")
                if section == "limits":  # prices may well be a list of all there are
                    log.warning("limits.%s is about nobody who is asked so far: %s.", key, _said(asked))

    def limited(self) -> set[int]:
        """Return the live runs that a limit is about: what they ask comes from one place, which keeps to it."""
        limits = self._experiment.spec.quotas.limits
        live = [run for run in self._experiment.runs if run.state.is_live] if limits else []
        for run in live:
            if run.number not in self._is_limited:
                self._is_limited[run.number] = bool(keys_of(run, limits))
        return {run.number for run in live if self._is_limited[run.number]}

    def pause(self, run: Run, reason: str) -> None:
        """A run has no money left to go on with."""
        self._paused.pop(run.number, None)
        self._paused[run.number] = reason

    def raise_if_paused(self) -> None:
        """End the process where nobody can go on any more, if somebody could with more money.

        Raises:
            Paused: saying how.
        """
        waiting = [run for run in self._experiment.runs if run.number in self._paused and run.state.is_live]
        if not waiting:
            return
        there = {run.number for run in waiting}
        # Of one limit the last word: what was on its way when the first of them was paused has been paid for since.
        last = {reason.partition(",")[0]: reason for number, reason in self._paused.items() if number in there}
        reasons = "; ".join(last.values())
        who = ", ".join(str(run.number) for run in waiting)
        limits = self._experiment.spec.quotas.limits
        keys = sorted(
            {
                key
                for run in waiting
                for key in keys_of(run, limits).values()
                if f"limits.{key}.usd " in self._paused[run.number] or len(keys_of(run, limits)) == 1
            }
        )
        higher = "".join(
            f" limits.{key}.usd=..." if key.isidentifier() else f" 'limits={{{_typed(key)}: {{usd: ...}}}}'"
            for key in keys
        )
        raise Paused(
            f"Paused: {reasons}. Everything is saved. With more, run{'s' if len(waiting) > 1 else ''} {who} would go "
            f"on: {resume_command(self._experiment.paths.root)}{higher}"
        )


def keys_of(run: Run, limits: Mapping[str, object]) -> dict[str, str]:
    """Return the limits that a run's requests fall under, by the sections whose generators send them."""
    found = {section: key_for(limits, *where) for section, where in _asked(run).items()}
    return {section: key for section, key in found.items() if key is not None}


def _asked(run: Run) -> dict[str, tuple[str, str]]:
    """Return the server and the model that a run asks, by the sections whose generators do."""
    spec = run.evaluation
    if spec is None:
        return {}
    generators = {"generator": spec.generator}
    for name, node in parted(spec.metrics)[1].items():
        generators[f"metrics.{name}"] = node.get("generator")
    return {section: where for section, node in generators.items() if (where := asked_of(node)) is not None}


def _names(server: str, model: str) -> tuple[str, str, str]:
    """Return the keys that are about a model of a server."""
    return model, server, f"{server}/{model}"


def _digits(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _said(asked: set[tuple[str, str]]) -> str:
    """Say who is asked."""
    if not asked:
        return "no server is asked"
    return "the models that are asked are " + ", ".join(f"{model} at {server}" for server, model in sorted(asked))


def _typed(key: str) -> str:
    """Return a key as it is typed: a colon ends it."""
    return key.replace(":", "\\:")
