"""Forms a gang of the runs that have a device together, and lets each go on when it can."""

from __future__ import annotations

import logging
import time
import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rfflow.config.spec import TrainSpec
from rfflow.worker.gangs.calibration import Choice, Choices
from rfflow.worker.gangs.gang import Gang
from rfflow.worker.gangs.member import AtBackward, AtForward, Member, Reply
from rfflow.worker.gangs.qualifying import matching, recomputes, why_not
from rfflow.worker.gangs.room import Share, groups, share_of, told
from rfflow.worker.gangs.trunk import Trunk
from rfflow.worker.shared import Shared
from rfflow.worker.training.session import TrainingSession

log = logging.getLogger(__name__)


class Gangs:
    """The gang of a worker, which changes from turn to turn.

    Args:
        shared: has the base models.
        fusion: ``engine.fusion``.
    """

    def __init__(self, shared: Shared, fusion: str = "slice"):
        self._shared = shared
        self._gang: Gang | None = None
        self._replies: dict[int, Reply] = {}
        self._own: dict[int, float] = {}
        """Seconds that the own code has taken of each run that began this turn in a gang."""
        self._form = "slice" if fusion == "auto" else fusion
        self._choices = Choices() if fusion == "auto" else None
        self._chosen: dict[frozenset[int], Choice] = {}
        self._later: list[dict[int, TrainingSession]] = []
        """Those that go together when the runs before them have come to their boundaries."""
        self._shares: weakref.WeakKeyDictionary[Any, Share] = weakref.WeakKeyDictionary()
        self._told: set[tuple[int, str]] = set()
        self._lines: set[str] = set()
        """What was said of several runs."""
        self._reasons: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()
        self._built: weakref.WeakKeyDictionary[Any, Member] = weakref.WeakKeyDictionary()

    def form(self, sessions: Mapping[int, Any]) -> None:
        """Let those of some runs go together that can; the others are left as they are, and are told why."""
        alike: defaultdict[Any, dict[int, TrainingSession]] = defaultdict(dict)
        for run, session in sessions.items():
            reason = self._why_not(session)
            if reason is None:
                trainer = session.coroutine.trainer
                alike[id(session.base), *matching(trainer)][run] = session
            else:
                self._say(run, session, reason)
        members = max(alike.values(), key=len, default={})
        for others in alike.values():
            for run, session in others.items():
                if len(members) < 2 or run not in members:
                    self._say(run, session, "no other run of its base has its device, precision and kind of weights")
        self._later = self._divided(members) if len(members) > 1 else []
        self._form_next()

    def _divided(self, members: Mapping[int, TrainingSession]) -> list[dict[int, TrainingSession]]:
        """Divide runs into those for whose steps there is memory at once."""
        for session in members.values():
            if session not in self._shares:
                self._shares[session] = share_of(session, self._shared)
        shares = {run: self._shares[session] for run, session in members.items()}
        free = self._shared.memory.left(0)
        found = groups(shares, free)
        if len(found) > 1 and (line := told(shares, found, free)) not in self._lines:
            self._lines.add(line)
            log.info("%s", line)
        return [{run: members[run] for run in group} for group in found if len(group) > 1]

    def _form_next(self) -> None:
        """Form the next gang, unless runs of the one before it are on their ways."""
        if self._gang is not None and self._gang.is_over:
            self._gang = None
        while self._gang is None and not self._own and self._later:
            members = self._later.pop(0)
            choice = self._chosen.get(frozenset(members))
            if choice is None or choice.is_fused is not False:
                self._gang = self._of(members)

    def __contains__(self, run: int) -> bool:
        return run in self._own

    def next(self) -> int | None:
        """Return a member that can go on; what all of them wait for is done first. ``None`` where there is none."""
        self._form_next()
        if self._gang is None:
            return None
        while not self._gang.ready:
            self._replies |= self._gang.serve()
            if self._gang.refused is not None:
                self._give_up(self._gang)
                return None
        return self._gang.ready[0]

    def _give_up(self, gang: Gang) -> None:
        """Let all go on one by one, now and in later turns."""
        for run in gang.members:
            self._own[run] += gang.seconds[run]
        gang.disband()
        self._gang = None

    def go_on(self, run: int, session: Any) -> Any:
        """Let a member go on to its next pause; ``None`` where it waits for the others instead."""
        began = time.perf_counter()
        try:
            pause = session.go_on(self._replies.pop(run, None))
        finally:
            self._own[run] += time.perf_counter() - began
        if isinstance(pause, AtForward | AtBackward):
            assert self._gang is not None
            self._gang.wait(run, pause)
            return None
        if self._gang is not None:
            self._gang.disturb()
        return pause

    def seconds(self, run: int) -> float | None:
        """Return what a member's turn has taken so far: its own code, and its share of the passes."""
        if run not in self._own:
            return None
        return self._own[run] + (0 if self._gang is None else self._gang.seconds[run])

    def remove(self, run: int) -> None:
        """Let a run go on alone."""
        self._replies.pop(run, None)
        self._own.pop(run, None)
        if self._gang is not None:
            self._gang.remove(run)

    def disband(self) -> None:
        """Let all of them go."""
        if self._gang is not None:
            self._gang.disband()
        self._gang = None
        self._later.clear()
        self._replies.clear()
        self._own.clear()

    def _why_not(self, session: Any) -> str | None:
        """Return why a run goes alone; that is looked at once, when it has been built."""
        if session not in self._reasons:
            self._reasons[session] = self._look(session)
        return self._reasons[session]

    def _look(self, session: Any) -> str | None:
        if not isinstance(session, TrainingSession):
            return "it trains nothing"
        if not isinstance(session.run.spec, TrainSpec):
            return "an app has built it"
        try:
            return why_not(session.coroutine.trainer, session.base.model) or self._trunk(session).trouble
        except Exception as error:  # a model that is built in another way than those that are known
            return f"its model is not understood ({type(error).__name__}: {error})"

    def _trunk(self, session: TrainingSession) -> Trunk:
        key = f"trunk of {session.spec.model.key}"
        return self._shared.made_once(key, lambda: Trunk(session.base, self._form))

    def _of(self, sessions: Mapping[int, TrainingSession]) -> Gang:
        trunk = self._trunk(next(iter(sessions.values())))
        layers = zip(*(recomputes(session.coroutine.trainer) for session in sessions.values()), strict=True)
        trunk.recompute([any(layer) for layer in layers])
        gang = Gang(trunk, self._choices, self._chosen)
        for run, session in sessions.items():
            if session not in self._built:
                self._built[session] = Member(session.coroutine)
            gang.add(run, self._built[session])
            self._own[run] = 0.0
        return gang

    def _say(self, run: int, session: Any, reason: str) -> None:
        if (run, reason) in self._told:
            return
        self._told.add((run, reason))
        with session.context.active():
            log.info("It goes through its base model alone: %s", reason)
