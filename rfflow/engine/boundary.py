"""What happens when a run gives the device back: everybody hears of it, and then it is safe."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from rfflow.checkpointing.checkpoints import Checkpoint
from rfflow.engine.callbacks import Audience, namespaced
from rfflow.engine.lifecycle import Lifecycle
from rfflow.engine.metrics_check import MetricsCheck
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.events import Boundary, Finished, Log
from rfflow.runs.run import Run, RunState
from rfflow.scheduling.scheduler import Assignment

log = logging.getLogger(__name__)

_EVALUATING = re.compile(r"eval_(\w+_)?runtime")
"""What a trainer calls the seconds of an evaluation; there may be several data sets."""


class Boundaries:
    """Publishes what runs log and where they have come to."""

    def __init__(self, audience: Audience, lifecycle: Lifecycle, metrics_check: MetricsCheck):
        self._audience = audience
        self._lifecycle = lifecycle
        self._metrics_check = metrics_check
        self._on_nan = lifecycle.experiment.spec.on_nan
        self._evaluated: defaultdict[int, float] = defaultdict(float)
        """Seconds that each run has evaluated since its last boundary."""
        self._to_skip: Counter[int] = Counter()
        """How many of each run's next logs are repeated."""

    def publish(self, run: Run, logs: Iterable[Log]) -> None:
        """Tell everybody what a run has logged, once: what is trained a second time has been heard of."""
        for step, metrics in logs:
            run.logs += 1
            if self._to_skip[run.number]:
                self._to_skip[run.number] -= 1
                continue
            run.note(metrics, step)
            run.step = max(run.step, step)
            self._evaluated[run.number] += sum(value for key, value in metrics.items() if _EVALUATING.fullmatch(key))
            self._audience.log(namespaced(run.name, metrics), step)
            self._lifecycle.tell("on_log", run=run, metrics=metrics, step=step)

    def again(self, run: Run, checkpoint: Checkpoint | None) -> None:
        """The run goes on from an earlier step, and will log once more what it has logged since.

        Args:
            run: which one.
            checkpoint: where from; one that was begun since may be lost, and the run may repeat itself already.
        """
        logged = run.logs + self._to_skip[run.number]
        run.step, run.logs = (0, 0) if checkpoint is None else (checkpoint.step, checkpoint.progress.get("logs", 0))
        self._to_skip[run.number] = logged - run.logs

    def come_to(self, run: Run, assignment: Assignment, boundary: Boundary, commit: Callable[[Run], object]) -> None:
        """Take note of a chunk that is done, and tell everybody.

        In this order: what was logged is in the files; it is on record that the run has come here; everybody hears of
        it; and only then there is a checkpoint, or the word that it has completed, that makes it needless to come here
        again.

        Args:
            run: whose chunk it is.
            assignment: which chunk.
            boundary: what came of it; its logs are published.
            commit: writes the checkpoint that was begun, if one was.
        """
        run.reach(boundary.step, boundary.metrics, boundary.running)
        result = ChunkResult(
            run=run.number,
            chunk=assignment.chunk,
            step=boundary.step,
            metrics=dict(run.metrics),
            slot=assignment.slot,
            answers=boundary.answers,
            started=boundary.started,
            ended=boundary.ended,
            own=boundary.own,
            switch=boundary.switch,
            evaluation=self._evaluated.pop(run.number, 0.0),
        )
        run.chunks.append(replace(result, answers=()))  # they are for people to read, and not kept
        self._metrics_check.look(run.number, run.metrics)
        is_last = isinstance(boundary, Finished)
        self._lifecycle.chunk_done(run, assignment, is_last=is_last)
        self._audience.save()
        self._lifecycle.save()
        if is_last:
            self._lifecycle.complete(run)
        self._lifecycle.tell("on_chunk_end", run=run, result=result)
        if is_last:
            self._lifecycle.end(run)
            self._lifecycle.save()
        else:
            commit(run)
            if boundary.has_nan and self._on_nan == "stop":
                log.warning("Run %s is stopped: its loss or its weights are not numbers any more", run.number)
                self._lifecycle.stop(run)
                self._lifecycle.save()
        if run.state is RunState.COMPLETED:
            self._lifecycle.clear_away(run)
