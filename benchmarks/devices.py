"""Two workers on the CPU against one, a thread and a core each, on the same runs: what several devices bring and cost.

    python benchmarks/devices.py --model tiny --repeat 3 --out outputs/devices

Four sides take turns, and what each came to is printed at once and kept in ``--out``; the same command goes on where it
was, and prints the table of all that is there:

- ``trl``: TRL alone, the runs one after the other in one process;
- ``one``: rfflow in one process;
- ``two``: rfflow on two workers, each pinned to a core of its own;
- ``killed``: the same, and the worker of a run is killed with SIGKILL when a chunk of that run begins.

The adapters of a round are compared to the last bit. A worker's start is the time from its process to its first word;
its memory is what it has for itself (USS), before its first run and after its first chunk. After the kill the time is
taken to the next step that the run logs, wherever that is: on the other worker, or on the one that takes the place.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, machine, table
from benchmarks.sides import Trained, run_plain, run_rfflow
from benchmarks.work import Work, make_work, same_tensors

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
MB = 1e6


class Watcher(logging.Handler):
    """A Fabric callback that pins every worker to a core, and notes how it starts and what memory it takes.

    Args:
        path: where to write what was noted.
        kill_at: the chunk, counted over all runs, at whose beginning the worker is killed that it was given to; 0 kills
            nobody.
    """

    def __init__(self, path: str, kill_at: int = 0):
        super().__init__(logging.INFO)
        self._path = Path(path)
        self._left = kill_at
        self._pids: dict[int, int] = {}
        self._victim: int | None = None
        self._killed = 0.0
        self._noted: dict[str, Any] = {"starts": [], "bare": [], "full": {}}
        logging.getLogger("rfflow.engine.hearing").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hear that a worker has begun."""
        if record.msg != "Slot %s: %s, process %s" or not isinstance(record.args, tuple):
            return
        import psutil

        slot, _, pid = record.args
        assert isinstance(slot, int) and isinstance(pid, int)
        process = psutil.Process(pid)
        self._pids[slot] = pid
        self._noted["starts"].append(time.time() - process.create_time())
        self._noted["bare"].append(process.memory_full_info().uss)
        cores = sorted(os.sched_getaffinity(0))
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {cores[slot % len(cores)]})

    def on_chunk_start(self, run: Any) -> None:
        """Kill the worker that is about to train."""
        self._left -= 1
        if self._left == 0:
            self._victim = run.number
            self._noted["slot"] = run.turn.slot
            os.kill(self._pids[run.turn.slot], signal.SIGKILL)
            self._killed = time.time()

    def on_log(self, run: Any, step: int) -> None:
        """Note when the run has trained on."""
        if self._killed and run.number == self._victim:
            self._noted |= {"to_next_step": time.time() - self._killed, "next_slot": run.turn.slot}
            self._killed = 0.0

    def on_chunk_end(self, run: Any, result: Any) -> None:
        """Note what a worker holds."""
        import psutil

        if (pid := self._pids.get(result.slot)) and str(pid) not in self._noted["full"]:
            with contextlib.suppress(psutil.Error):  # it may have been killed meanwhile
                self._noted["full"][str(pid)] = psutil.Process(pid).memory_full_info().uss
        if run.number == self._victim and "chunk" not in self._noted and len(run.chunks) > 1:
            self._noted["chunk"] = run.chunks[0].seconds
        self._path.write_text(json.dumps(self._noted), encoding="utf-8")


def watched(work: Work, place: Path, kill_at: int = 0) -> tuple[Trained, dict[str, Any]]:
    """Train on two workers; return also what was noted of them."""
    note = place / "watched.json"
    watcher = f"+callbacks.watcher={{_target_: benchmarks.devices.Watcher, path: {note}, kill_at: {kill_at}}}"
    trained = run_rfflow(work, place, extra=["engine.devices=2", watcher], environ=ONE_THREAD)
    return trained, json.loads(note.read_text(encoding="utf-8"))


SIDES: Mapping[str, Callable[[Work, Path], tuple[Trained, dict[str, Any]]]] = {
    "trl": lambda work, place: (run_plain(work, place, one_process=True, environ=ONE_THREAD), {}),
    "one": lambda work, place: (run_rfflow(work, place, extra=["engine.devices=1"], environ=ONE_THREAD), {}),
    "two": lambda work, place: watched(work, place),
    "killed": lambda work, place: watched(work, place, kill_at=6),
}


def measure(work: Work, folder: Path) -> dict[str, Any]:
    """Measure every side once, and say what came of each."""
    one_round: dict[str, Any] = {}
    first: Trained | None = None
    for side, train in SIDES.items():
        place = folder / side
        place.mkdir(parents=True)
        trained, noted = train(work, place)
        first = first or trained
        if not same_tensors(first.adapters, trained.adapters):
            raise SystemExit(f"The adapters of {side} are not those of TRL alone.")
        began = trained.began
        one_round[side] = {"seconds": trained.seconds, "cpu": trained.cpu, "began": began, **noted}
        print(f"  {side:7} {trained.seconds:7.1f} s, {trained.cpu:7.1f} s of processor time, equal bits", flush=True)
    return one_round


def figures(rounds: list[dict[str, Any]]) -> list[Figure]:
    """Return what the rounds come to."""

    def per(side: str, other: str, name: str) -> tuple[float, ...]:
        return tuple(one[side][name] / one[other][name] for one in rounds)

    def trained(side: str) -> tuple[float, ...]:
        return tuple(one[side]["seconds"] - one[side]["began"] for one in rounds)

    workers = [one[side] for one in rounds for side in ("two", "killed")]
    kills = [one["killed"] for one in rounds if "to_next_step" in one["killed"]]
    found = [
        Figure("one device / TRL alone: wall time", per("one", "trl", "seconds")),
        Figure("one device / TRL alone: processor time", per("one", "trl", "cpu")),
        Figure("two workers / one: wall time", per("two", "one", "seconds")),
        Figure("two workers / one: processor time", per("two", "one", "cpu")),
        Figure(
            "two workers / one: wall time from the first step on",
            tuple(two / one for two, one in zip(trained("two"), trained("one"), strict=True)),
        ),
        Figure(
            "one: from the start of the process to the first turn", tuple(one["one"]["began"] for one in rounds), "s"
        ),
        Figure("two: the same", tuple(one["two"]["began"] for one in rounds), "s"),
        Figure("a worker: from its process to its first word", tuple(t for w in workers for t in w["starts"]), "s"),
        Figure("a worker's memory before its first run", tuple(m / MB for w in workers for m in w["bare"]), "MB"),
        Figure("a worker's memory after a chunk", tuple(m / MB for w in workers for m in w["full"].values()), "MB"),
    ]
    if kills:
        found += [
            Figure("from SIGKILL of its worker to a run's next step", tuple(k["to_next_step"] for k in kills), "s"),
            Figure("the same, on another slot (1) or on the one in its place (0)", tuple(map(_has_moved, kills))),
        ]
    chunks = tuple(k["chunk"] for k in kills if "chunk" in k)
    return found + ([Figure("a chunk of that run, undisturbed", chunks, "s")] if chunks else [])


def _has_moved(kill: dict[str, Any]) -> float:
    return float(kill["next_slot"] != kill["slot"])


def main() -> None:
    """Measure the rounds that are missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="smollm2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("outputs/devices"))
    given = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("Two workers need two cores.")
    kept = given.out / f"{given.model}-{given.runs}x{given.steps}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    rounds = json.loads(kept.read_text(encoding="utf-8"))["rounds"] if kept.exists() else []
    while len(rounds) < given.repeat:
        print(f"round {len(rounds) + 1} of {given.repeat}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            work = make_work(given.model, given.steps, Path(folder)).runs(given.runs)
            rounds.append(measure(work, Path(folder) / "sides"))
        aside = kept.with_suffix(".new")
        aside.write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1), encoding="utf-8")
        aside.replace(kept)
    print(table(figures(rounds)))
    equal = statistics.median(one["one"]["cpu"] / one["trl"]["cpu"] for one in rounds)
    print(f"\nOne device / TRL alone in processor time: {equal:.3f}, wanted 1.00 ± 0.02. Kept in {kept}.")


if __name__ == "__main__":
    main()
