"""Runs that go through their base together, without an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rfflow.config.spec import ExperimentSpec, RunSpec
from rfflow.runs.events import Finished, Prepare, Ready
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import RunCard
from rfflow.worker.device import make_device_fabric
from rfflow.worker.gangs.calibration import Choices
from rfflow.worker.gangs.gang import Gang
from rfflow.worker.gangs.member import AtBackward, AtForward, Member
from rfflow.worker.gangs.qualifying import recomputes, why_not
from rfflow.worker.gangs.trunk import Trunk
from rfflow.worker.training.session import TrainingSession
from rfflow.worker.worker import Worker
from tests.support.plain import Outcome


@contextlib.contextmanager
def prepared(specs: Sequence[RunSpec], root: Path) -> Iterator[dict[int, TrainingSession]]:
    """Build runs on one device."""
    spec = ExperimentSpec(name="test", accelerator="cpu")
    worker = Worker(spec, make_device_fabric(spec), lambda run, event: None)
    try:
        for number, one in enumerate(specs):
            card = RunCard(number, one, f"Run {number}", RunPaths(root / str(number)))
            (event,) = worker.do(Prepare(card))
            assert isinstance(event, Ready), event
        yield worker.sessions  # type: ignore[misc]
    finally:
        worker.close()


def train(
    sessions: Mapping[int, TrainingSession], choices: Choices | None = None, form: str = "slice"
) -> tuple[dict[int, Outcome | BaseException], Gang]:
    """Train runs to their ends in a gang; one that fails leaves its error."""
    trunk = Trunk(sessions[0].base, form)
    gang = Gang(trunk, choices)
    for run, session in sessions.items():
        assert why_not(session.coroutine.trainer, session.base.model) is None
        gang.add(run, Member(session.coroutine))
    each = [recomputes(session.coroutine.trainer) for session in sessions.values()]
    trunk.recompute([any(layer) for layer in zip(*each, strict=True)])
    outcomes: dict[int, Outcome | BaseException] = {}
    replies: dict[int, object] = {}
    while len(outcomes) < len(sessions):
        for run in gang.ready:
            try:
                while not isinstance(pause := sessions[run].go_on(replies.pop(run, None)), AtForward | AtBackward):
                    if isinstance(pause, Finished):
                        outcomes[run] = Outcome.of(sessions[run].coroutine.trainer)
                        break
                else:
                    gang.wait(run, pause)
            except Exception as error:
                outcomes[run] = error
            if run in outcomes:
                gang.remove(run)
        replies |= gang.serve()
    return outcomes, gang
