"""Evaluations that have a turn together: all ask at once, and whoever has been answered goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rfflow.worker.evaluation.session import EvaluationSession


class Together:
    """The evaluations of a worker's turn, where there are several: while one waits for its server, so do the others.

    Each has its own boundary, failure and pause, and leaves the others as they are.
    """

    def __init__(self) -> None:
        self._sessions: dict[int, EvaluationSession] = {}
        """By run; whoever went on last stands last."""
        self._has_asked: set[int] = set()
        self._bell = threading.Event()

    def form(self, sessions: Mapping[int, Any]) -> bool:
        """Let runs go together, and return whether they do: all must be evaluations."""
        evaluations = {run: each for run, each in sessions.items() if isinstance(each, EvaluationSession)}
        if len(evaluations) < len(sessions):
            return False
        self._sessions = evaluations
        return True

    def __contains__(self, run: int) -> bool:
        return run in self._sessions

    def next(self) -> int | None:
        """Return who can go on; wait until somebody can. First everybody asks. ``None`` where there is nobody."""
        while self._sessions:
            self._bell.clear()
            for run, session in self._sessions.items():
                if run not in self._has_asked or session.has_news:
                    self._sessions[run] = self._sessions.pop(run)
                    return run
            self._bell.wait()
        return None

    def ask(self, run: int) -> None:
        """Let a run ask, without waiting for an answer."""
        self._has_asked.add(run)
        self._sessions[run].begin(self._bell.set)

    def remove(self, run: int) -> None:
        """A run's turn is over."""
        self._sessions.pop(run, None)
        self._has_asked.discard(run)

    def disband(self) -> None:
        """Let all of them go."""
        self._sessions.clear()
        self._has_asked.clear()
