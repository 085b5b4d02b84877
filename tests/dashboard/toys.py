"""An experiment whose runs only count, slowly enough to be steered: ``python -m tests.dashboard.toys DIR``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rfflow.runs.events import Pause
from rfflow.tracking.metrics_log import MetricsLog
from rfflow.tracking.timeline import Timeline
from tests.dashboard.made import composed
from tests.support import toy

CHUNK = 0.02
"""Seconds that a chunk takes."""


class PacedTrainee(toy.ToyTrainee):
    """A toy that takes its time."""

    def advance(self) -> Pause:
        time.sleep(CHUNK)
        return super().advance()


def main(root: Path, runs: int = 4) -> None:
    """Train toys in an experiment that Hydra seems to have begun."""
    composed(root)
    toy.ToyTrainee = PacedTrainee  # type: ignore[misc]
    specs = [toy.toy_spec(chunks=2000) for _ in range(runs)]
    callbacks = [MetricsLog(), Timeline(picture=False)]
    toy.toy_engine(root, specs, callbacks, idle_timeout=60).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
