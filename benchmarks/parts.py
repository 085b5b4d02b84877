"""The parts of the benchmark: each measures one promise and returns its figures."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratios
from benchmarks.sides import GIVE_BACK, KEEP, ROOT, Trained, run_plain, run_process, run_rfflow
from benchmarks.work import Work, same_tensors, trained_bytes

RUNS = (4, 8)
MB = 1e6


@dataclass(frozen=True)
class Bench:
    """What a part measures with."""

    model: str
    work: Work
    folder: Path
    """For everything that is written; one folder below it for each measurement."""
    repeat: int
    runs: Sequence[int] = RUNS
    """How many runs an experiment has, ascending."""

    def place(self, name: str) -> Path:
        """Return a new folder."""
        return next(path for number in count() if not (path := self.folder / f"{name}-{number}").exists())


def add_callback(name: str, path: Path) -> str:
    """Return the override that adds ``benchmarks.<name>.<Name>`` to the callbacks, writing to ``path``."""
    return f"+callbacks.{name}={{_target_: benchmarks.{name}.{name.capitalize()}, path: {path}}}"


# --- (a) switches -----------------------------------------------------------------------------------------------------


def switches(bench: Bench) -> list[Figure]:
    """What lies between the chunks of two runs: its share of the training, and milliseconds a boundary."""
    figures = []
    for chunks in (4, 16):
        work = replace(bench.work, steps=max(bench.work.steps, 16)).runs(2)
        watched = [_watch(work, bench.place(f"switches-{chunks}"), chunks) for _ in range(bench.repeat)]
        share = tuple(100 * _per_boundary(one)["switches"] / _on_device(one) for one in watched)
        others = tuple(100 * _per_boundary(one)["everything that is not training"] / _on_device(one) for one in watched)
        # On a model of no size everything is large beside the training: the promise is about real ones.
        wanted = 0.5 if bench.model != "tiny" else None
        figures += [
            Figure(f"{chunks} chunks: switches / training", share, "%", wanted),
            Figure(f"{chunks} chunks: everything that is not training / training", others, "%"),
            Figure(f"{chunks} chunks: training, a chunk", tuple(1000 * _on_device(one) for one in watched), "ms"),
        ]
        for name in _per_boundary(watched[0]):
            values = tuple(1000 * _per_boundary(one)[name] for one in watched)
            figures.append(Figure(f"{chunks} chunks: {name}, a boundary", values, "ms"))
    return figures


def _watch(work: Work, folder: Path, chunks: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    path = folder / "stopwatch.json"
    run_rfflow(work, folder, chunks=chunks, extra=[add_callback("stopwatch", path)])
    watched: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return watched


def _on_device(watched: dict[str, Any]) -> float:
    """Return the seconds that a run holds the device for a chunk."""
    return statistics.fmean(chunk["seconds"] for chunk in watched["chunks"])


def _per_boundary(watched: dict[str, Any], clock: str = "times") -> dict[str, float]:
    """Return the seconds that each thing takes at a boundary, on average; with ``clock="cpu"`` in processor time."""
    total: defaultdict[str, float] = defaultdict(float, {name: sum(each) for name, each in watched[clock].items()})
    # The hooks of the experiment's beginning and end are not of the loop.
    hooks = sum(value for name, value in total.items() if name.startswith("hook on_") and "experiment" not in name)
    inside = sum(total[name] for name in ("training", "fingerprint", "weights", "finite", "holdings"))
    seconds = {
        "switches": total["resume"] - inside if clock == "cpu" else sum(one["switch"] for one in watched["chunks"]),
        "small files of the checkpoint": total["draft"],
        "waiting for the checkpoint before": total["waiting"],
        "experiment.json": total["saved"],
        "check of the base": total["fingerprint"],
        "weights found, and numbers": total["weights"] + total["finite"],
        "callbacks and loggers": hooks + total["loggers"],
        "inbox and status file": total["inbox"] + total["status"],
        "scheduler": total["scheduler"],
        "memory": total["room"] + total["holdings"],
        "weights kept at a run's end": total["last weights"],
    }
    whole = total["loop"] - total["training"]
    seconds |= {"the rest": whole - sum(seconds.values()), "everything that is not training": whole}
    return {name: value / len(watched["chunks"]) for name, value in seconds.items()}


# --- (b) wall time and (c) the first comparison -----------------------------------------------------------------------


def wall(bench: Bench) -> list[Figure]:
    """Wall time of an experiment against the same runs by TRL alone."""
    return _race(bench)[0]


def first(bench: Bench) -> list[Figure]:
    """When all runs can first be compared, against the same by TRL alone."""
    return _race(bench)[1]


_raced: dict[Path, tuple[list[Figure], list[Figure]]] = {}


def _race(bench: Bench) -> tuple[list[Figure], list[Figure]]:
    """Let the sides take turns; both parts are read from the same race."""
    if bench.folder not in _raced:
        rounds = [_round(bench) for _ in range(bench.repeat)]
        _raced[bench.folder] = _wall_figures(bench, rounds), _first_figures(bench, rounds)
    return _raced[bench.folder]


@dataclass(frozen=True)
class Round:
    """Every side once; plain TRL with the most runs, of which the first few are the smaller experiment's."""

    ours: dict[int, Trained]
    each: Trained
    """One process a run."""
    loop: Trained
    """All runs in one process."""
    tuned: Trained
    """The same, with the allocator set as rfflow sets it."""


def _round(bench: Bench) -> Round:
    most = bench.work.runs(max(bench.runs))
    ours = {}
    for number in bench.runs:
        ours[number] = run_rfflow(bench.work.runs(number), bench.place(f"rfflow-{number}"))
        if number == min(bench.runs):
            each = run_plain(most, bench.place("each"), one_process=False)
    loop = run_plain(most, bench.place("loop"), one_process=True)
    tuned = run_plain(most, bench.place("tuned"), one_process=True, environ=KEEP)
    for number, trained in ours.items():
        for plain in (each, loop, tuned):
            # Not a race unless both sides have done the same.
            if not same_tensors(trained.adapters, plain.adapters[:number]):
                raise SystemExit(f"rfflow and plain TRL ended with different adapters: see {bench.folder}")
    return Round(ours, each, loop, tuned)


def _wall_figures(bench: Bench, rounds: Sequence[Round]) -> list[Figure]:
    figures = []
    for number in bench.runs:
        ours = [one.ours[number] for one in rounds]
        sides = {
            "one process each": ([one.each for one in rounds], 1),
            "all in one process": ([one.loop for one in rounds], 1),
            "all in one process, allocator as rfflow's": ([one.tuned for one in rounds], None),
        }
        figures.append(Figure(f"{number} runs: rfflow", tuple(side.seconds for side in ours), "s"))
        for name, (theirs, wanted) in sides.items():
            seconds = tuple(side.ended[number - 1] for side in theirs)
            cpu = tuple(side.cpu_ended[number - 1] for side in theirs)
            figures += [
                Figure(f"{number} runs: TRL, {name}", seconds, "s"),
                Figure(f"{number} runs: rfflow / TRL, {name}", ratios([o.seconds for o in ours], seconds), "", wanted),
                Figure(f"{number} runs: the same in processor time", ratios([o.cpu for o in ours], cpu)),
            ]
    return figures


def _first_figures(bench: Bench, rounds: Sequence[Round]) -> list[Figure]:
    figures = []
    for number in bench.runs:
        ours = [one.ours[number].first for one in rounds]
        figures.append(Figure(f"{number} runs: rfflow", tuple(ours), "s"))
        for name, sides in (
            ("one process each", [one.each for one in rounds]),
            ("all in one process", [one.loop for one in rounds]),
        ):
            quarter = [side.quarters[number - 1] for side in sides]
            ended = [side.ended[number - 1] for side in sides]
            figures += [
                Figure(f"{number} runs: rfflow / TRL, {name}: last run's first quarter", ratios(ours, quarter), "", 1),
                Figure(f"{number} runs: rfflow / TRL, {name}: all runs ended", ratios(ours, ended), "", 1),
            ]
    return figures


def saving(bench: Bench) -> list[Figure]:
    """Wall time where TRL saves, too: a checkpoint of every run wherever rfflow's chunks end."""
    chunks = 4
    figures, ours, theirs = [], [], []
    for _ in range(bench.repeat):
        ours.append({number: run_rfflow(bench.work.runs(number), bench.place("rfflow-saves")) for number in bench.runs})
        most = bench.work.saving(chunks).runs(max(bench.runs))
        theirs.append(run_plain(most, bench.place("loop-saves"), one_process=True))
        for number, trained in ours[-1].items():
            if not same_tensors(trained.adapters, theirs[-1].adapters[:number]):
                raise SystemExit(f"rfflow and plain TRL ended with different adapters: see {bench.folder}")
    for number in bench.runs:
        seconds = tuple(side.ended[number - 1] for side in theirs)
        cpu = tuple(side.cpu_ended[number - 1] for side in theirs)
        mine = [one[number] for one in ours]
        figures += [
            Figure(f"{number} runs: rfflow", tuple(one.seconds for one in mine), "s"),
            Figure(f"{number} runs: TRL, all in one process, {chunks} checkpoints a run", seconds, "s"),
            Figure(f"{number} runs: rfflow / TRL", ratios([one.seconds for one in mine], seconds), "", 1),
            Figure(f"{number} runs: the same in processor time", ratios([one.cpu for one in mine], cpu)),
        ]
    return figures


# --- (d) memory -------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> list[Figure]:
    """What a further run on the same base costs in memory."""
    counts = (1, *bench.runs)
    work = replace(bench.work, steps=2).batches_of(1)
    peaks: dict[int, list[float]] = {number: [] for number in counts}
    held: dict[int, list[float]] = {number: [] for number in counts}
    plain = []
    for _ in range(bench.repeat):
        for number in counts:
            folder = bench.place(f"memory-{number}")
            folder.mkdir(parents=True)
            footprint = folder / "footprint.json"
            trained = run_rfflow(
                work.runs(number),
                folder,
                chunks=2,
                extra=[add_callback("footprint", footprint)],
                environ=GIVE_BACK,
            )
            peaks[number].append(trained.peak)
            held[number].append(max(json.loads(footprint.read_text(encoding="utf-8"))))
        plain.append(run_plain(work.runs(1), bench.place("memory-plain"), one_process=True, environ=GIVE_BACK).peak)
    adapter = trained_bytes(trained.adapters[0])
    owned = 4 * adapter  # the adapter, its gradients, and two moments of AdamW, all in float32
    growth = [_slope(counts, [held[number][index] for number in counts]) for index in range(bench.repeat)]
    growth_of_peak = [_slope(counts, [peaks[number][index] for number in counts]) for index in range(bench.repeat)]
    return [
        Figure("growth a run / (adapter + gradients + optimizer)", tuple(g / owned for g in growth), "", 1.2),
        Figure("growth a run, of the process's peak / the same", tuple(g / owned for g in growth_of_peak), "", 1.2),
        Figure("adapter + gradients + optimizer, computed", (owned / MB,), "MB"),
        Figure("growth a run", tuple(g / MB for g in growth), "MB"),
        *(Figure(_plural(number) + ": peak", tuple(peak / MB for peak in peaks[number]), "MB") for number in counts),
        *(
            Figure(_plural(number) + ": held at a boundary", tuple(h / MB for h in held[number]), "MB")
            for number in counts
        ),
        Figure("TRL, one run: peak", tuple(peak / MB for peak in plain), "MB"),
    ]


def _plural(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _slope(counts: Sequence[int], values: Sequence[float]) -> float:
    """Return bytes a run: the least-squares line through the points."""
    return statistics.linear_regression(counts, values).slope


# --- (e) start-up -----------------------------------------------------------------------------------------------------


_IS_TORCH_THERE = (
    "import runpy, sys\nsys.argv = ['rfflow', '--help']\ntry:\n    runpy.run_module('rfflow', run_name='__main__')\n"
    "except SystemExit:\n    pass\nsys.exit('torch' in sys.modules)"
)


def startup(bench: Bench) -> list[Figure]:
    """How long people wait for the help."""
    folder = bench.place("startup")
    folder.mkdir(parents=True)
    commands = {
        "rfflow --help": ["-m", "rfflow", "--help"],
        "python -c pass": ["-c", "pass"],
        "python -c 'import hydra'": ["-c", "import hydra"],
    }
    path = {"PYTHONPATH": str(ROOT)}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(max(bench.repeat, 5)):
        for name, arguments in commands.items():
            seconds[name].append(run_process([sys.executable, *arguments], folder, path).seconds)
    run_process([sys.executable, "-c", _IS_TORCH_THERE], folder, path)  # exits with 1 if torch was imported
    return [
        Figure(name, tuple(values), "s", 2.0 if name.startswith("rfflow") else None) for name, values in seconds.items()
    ]


# --- ops --------------------------------------------------------------------------------------------------------------


def ops(bench: Bench) -> list[Figure]:
    """How long an op takes once the boundary is there, and what looking for ops costs where there is none."""
    told: dict[str, list[float]] = {}
    looked: dict[str, list[float]] = {}
    work = replace(bench.work, steps=max(bench.work.steps, 16)).runs(2)
    for _ in range(bench.repeat):
        folder = bench.place("ops")
        folder.mkdir(parents=True)
        path = folder / "person.json"
        run_rfflow(work, folder, chunks=16, extra=[add_callback("person", path)])
        for verb, seconds in json.loads(path.read_text(encoding="utf-8")).items():
            told.setdefault(verb, []).extend(1000 * value for value in seconds)
        told.setdefault(EARLY, []).extend(1000 * value for value in _early_clones(bench))
        for name, seconds in _watch(work, bench.place("idle"), 16)["times"].items():
            looked.setdefault(name, []).extend(1000 * value for value in seconds)
    idle = {"inbox": "idle inbox, a boundary", "scan": "of that, looking", "status": "of that, writing status.yaml"}
    return [
        *(
            Figure(
                f"{verb}{': from drop to applied, at a boundary' if verb != EARLY else ''}",
                tuple(values),
                "ms",
                None if verb == "clone" else 50,
            )
            for verb, values in told.items()
        ),
        *(Figure(title, tuple(looked[name]), "ms") for name, title in idle.items()),
    ]


EARLY = "clone, dropped in the middle of a chunk: from the boundary to applied"


def _early_clones(bench: Bench) -> list[float]:
    """Return the seconds at the boundary for clones whose op was dropped before it."""
    folder = bench.place("early")
    folder.mkdir(parents=True)
    rows, path = folder / "many.jsonl", folder / "person.json"
    rows.write_text(20 * bench.work.data.read_text(encoding="utf-8"), encoding="utf-8")
    # Chunks of a hundred steps: rfflow looks up from a chunk twice a second.
    work = replace(bench.work, data=rows, steps=400).runs(1)
    run_rfflow(
        work, folder, extra=[f"+callbacks.person={{_target_: benchmarks.person.Person, path: {path}, early: true}}"]
    )
    seconds: list[float] = json.loads(path.read_text(encoding="utf-8"))["clone"]
    return seconds


PARTS: dict[str, tuple[str, Callable[[Bench], list[Figure]]]] = {
    "switches": ("Between the chunks of 2 runs", switches),
    "wall": ("Wall time, imports included", wall),
    "saving": ("Wall time, both sides with checkpoints", saving),
    "first": ("The first comparison of all runs", first),
    "memory": ("Memory of runs on one base", memory),
    "startup": ("Start-up", startup),
    "ops": ("Ops", ops),
}
