"""Which run held the device when: a JSON file while the experiment goes, and a picture at its end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfflow.files import replace_text, shown
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run

log = logging.getLogger(__name__)

VERSION = 1


class Timeline:
    """Keep ``timeline.json`` at every boundary and draw ``timeline.png`` when nothing is left to train.

    The file is one object::

        {"version": 1,
         "experiment": name,
         "started": seconds since the epoch,
         "runs": [{"run": number, "parent": number or null, "overrides": [...]}, ...],
         "chunks": [{"run": number, "chunk": from 1, "step": optimizer steps done at its end,
                     "started": ..., "ended": ...,    seconds since the epoch between which the run held the device
                     "switch": ...,                   of which spent on restoring and saving the run's context
                     "evaluation": ... or null,       and on evaluating (as far as the trainer has logged it)
                     "slot": ...}, ...]}              the device, counted from 0

    Every chunk is turned into text once; a boundary joins those lines and replaces the file, a few milliseconds for
    10 000 chunks. So that this stays below ``share`` of the time, whatever the disk, the boundaries that follow a write
    too soon are skipped; the end of the experiment is always written.

    Args:
        picture: whether to draw the picture (it needs matplotlib).
        share: the most that writing the file may take of the experiment's time.
    """

    def __init__(self, picture: bool = True, share: float = 0.005):
        self._picture = picture
        self._share = share
        self._chunks: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self._next_write = 0.0

    def on_experiment_start(self, experiment: Experiment) -> None:
        """Take in what the runs have behind them, where an experiment goes on."""
        known = {(chunk["run"], chunk["chunk"]) for chunk in self._chunks}
        before = [result for run in experiment.runs for result in run.chunks]
        for result in sorted(before, key=lambda result: result.started):
            if (result.run, result.chunk + 1) not in known:
                self._add(result)
        self._write(experiment)

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Add a chunk."""
        self._add(result)
        if time.monotonic() >= self._next_write:
            self._write(experiment)

    def on_experiment_end(self, experiment: Experiment) -> None:
        """Write the last word and draw the picture."""
        self._write(experiment)
        if self._picture and self._chunks:
            with _quiet_matplotlib():
                self._draw(experiment)

    def _draw(self, experiment: Experiment) -> None:
        try:
            from rfflow.tracking.gantt import draw
        except ImportError as error:
            log.warning("%s was not drawn: %s.", shown(experiment.paths.timeline_picture), error)
            return
        draw(read(experiment.paths.timeline), experiment.paths.timeline_picture)

    def on_exception(self, experiment: Experiment) -> None:
        """Write what is known, if the experiment ever started; no picture."""
        if experiment.paths.timeline.exists():
            self._write(experiment)

    def _add(self, result: ChunkResult) -> None:
        chunk = {
            "run": result.run,
            "chunk": result.chunk + 1,
            "step": result.step,
            "started": round(result.started, 4),
            "ended": round(result.ended, 4),
            "switch": round(result.switch, 6),
            "evaluation": round(result.evaluation, 4) or None,
            "slot": result.slot,
        }
        self._chunks.append(chunk)
        self._lines.append(json.dumps(chunk))

    def _write(self, experiment: Experiment) -> None:
        begun = time.monotonic()
        head = {"version": VERSION, "experiment": experiment.spec.name, "started": experiment.started}
        runs = [
            json.dumps({"run": run.number, "parent": run.parent, "overrides": run.overrides}) for run in experiment.runs
        ]
        text = f"{json.dumps(head)[:-1]},\n {_array('runs', runs)},\n {_array('chunks', self._lines)}}}\n"
        replace_text(experiment.paths.timeline, text)
        now = time.monotonic()
        self._next_write = now + (now - begun) * (1 / self._share - 1)


def read(path: Path) -> dict[str, Any]:
    """Read a ``timeline.json``."""
    timeline: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return timeline


def _array(name: str, lines: list[str]) -> str:
    body = ",\n  ".join(lines)
    return f'"{name}": [\n  {body}\n ]' if lines else f'"{name}": []'


@contextmanager
def _quiet_matplotlib() -> Iterator[None]:
    """Pass over what it says on a first picture: that it has looked at the fonts, and where its cache is."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
