"""What the experiment has spent, and the runs that wait for more: a budget pauses it, instead of being overdrawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from rfflow.checkpointing.disk import resume_command
from rfflow.config.quotas import asked_of, key_for
from rfflow.errors import Paused
from rfflow.evals.items import costs
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run


class Money:
    """The money of one experiment."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._paused: dict[int, str] = {}
        """Why runs do not go on."""

    def spent(self) -> dict[str, float]:
        """Return the USD that all runs have spent so far, whatever became of them, by the keys that have a budget."""
        limits = {key: limit for key, limit in self._experiment.spec.quotas.limits.items() if limit.usd is not None}
        found: defaultdict[str, float] = defaultdict(float)
        for run in self._experiment.runs if limits else ():
            if (key := _key(run, limits)) is not None:
                found[key] += sum(costs(run.paths.items))
        return dict(found)

    def pause(self, run: Run, reason: str) -> None:
        """A run has no money left to go on with."""
        self._paused[run.number] = reason

    def raise_if_paused(self) -> None:
        """End the process where nobody can go on any more, if somebody could with more money.

        Raises:
            Paused: saying how.
        """
        waiting = [run for run in self._experiment.runs if run.number in self._paused and run.state.is_live]
        if not waiting:
            return
        reasons = ", ".join(dict.fromkeys(self._paused[run.number] for run in waiting))
        who = ", ".join(str(run.number) for run in waiting)
        limits = self._experiment.spec.quotas.limits
        keys = sorted({key for run in waiting if (key := _key(run, limits)) is not None})
        higher = "".join(
            f" limits.{key}.usd=..." if key.isidentifier() else f" 'limits={{{key}: {{usd: ...}}}}'" for key in keys
        )
        raise Paused(
            f"Paused: {reasons}. Everything is saved. With more, run{'s' if len(waiting) > 1 else ''} {who} would go "
            f"on: {resume_command(self._experiment.paths.root)}{higher}"
        )


def _key(run: Run, limits: Mapping[str, object]) -> str | None:
    """Return the limit that a run's requests fall under."""
    spec = run.spec.evaluation
    asked = None if spec is None else asked_of(spec.generator)
    return None if asked is None else key_for(limits, *asked)
