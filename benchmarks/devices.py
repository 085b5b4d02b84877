"""Two workers on the CPU against one, a thread each, on the same runs: what several devices bring, and what they cost.

    python benchmarks/devices.py --model tiny --repeat 3

The sides take turns, and the adapters of each pair are compared to the last bit. With as many cores as workers the
second halves the time that is trained; what is left of that is told by the first ratio. Then the workers are killed
with SIGKILL in the middle, and it is measured how long a run takes to its next chunk's end: a new process, its base
model, the run's checkpoint, and the chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, ratios, table
from benchmarks.sides import Trained, run_rfflow
from benchmarks.work import make_work, same_tensors

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Killer:
    """A Fabric callback that kills all workers once, and notes how long a run takes to come to its next boundary.

    Args:
        path: where to write ``{"seconds": ..., "chunk": ...}``: from the kill to that boundary, and what a chunk of
            that run takes undisturbed.
        after: how many chunks end before.
    """

    def __init__(self, path: str, after: int = 3):
        self._path = Path(path)
        self._left = after
        self._victim: int | None = None
        self._killed = 0.0

    def on_chunk_start(self, run: Any) -> None:
        """Kill the workers, that of the run that begins among them."""
        self._left -= 1
        if self._left == 0:
            import psutil

            self._victim = run.number
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
            self._killed = time.time()

    def on_chunk_end(self, run: Any, result: Any) -> None:
        """Note when the run is at its boundary."""
        if self._killed and run.number == self._victim:
            usual = run.chunks[0].seconds
            self._path.write_text(json.dumps({"seconds": time.time() - self._killed, "chunk": usual}))
            self._killed = 0.0


def first_turn(trained: Trained) -> float:
    """Return the seconds after which the first run got a device, as the experiment's clock has it."""
    timeline = json.loads((trained.root / "timeline.json").read_text(encoding="utf-8"))
    return min(chunk["started"] for chunk in timeline["chunks"]) - float(timeline["started"])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="smollm2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    given = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("Two workers need two cores.")
    one, two, killed = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(given.model, given.steps, Path(folder)).runs(given.runs)
        for number in range(given.repeat):
            places = [Path(folder) / f"{side}-{number}" for side in ("one", "two", "killed")]
            for place in places:
                place.mkdir()
            one.append(run_rfflow(work, places[0], extra=["engine.devices=1"], environ=ONE_THREAD))
            two.append(run_rfflow(work, places[1], extra=["engine.devices=2"], environ=ONE_THREAD))
            note = places[2] / "killed.json"
            killer = f"+callbacks.killer={{_target_: benchmarks.devices.Killer, path: {note}}}"
            third = run_rfflow(work, places[2], extra=["engine.devices=2", killer], environ=ONE_THREAD)
            killed.append(json.loads(note.read_text()))
            for other in (two[-1], third):
                if not same_tensors(one[-1].adapters, other.adapters):
                    raise SystemExit("One and two devices ended with different adapters.")
        figures = [
            Figure("two workers / one: wall time", ratios([t.seconds for t in two], [t.seconds for t in one])),
            Figure(
                "two workers / one: all runs can be compared", ratios([t.first for t in two], [t.first for t in one])
            ),
            Figure("two workers / one: processor time", ratios([t.cpu for t in two], [t.cpu for t in one])),
            Figure("one: from the start of the experiment to the first turn", tuple(map(first_turn, one)), "s"),
            Figure("two: the same, a worker's start included", tuple(map(first_turn, two)), "s"),
            Figure("from SIGKILL of the workers to a run's next boundary", tuple(k["seconds"] for k in killed), "s"),
            Figure("a chunk of that run, undisturbed", tuple(k["chunk"] for k in killed), "s"),
        ]
    print(table(figures))


if __name__ == "__main__":
    main()
