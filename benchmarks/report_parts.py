"""The parts of the report: each measures one round, all sides in turn, and makes figures of the rounds there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from benchmarks.figures import Figure, ratios
from benchmarks.parts import _on_device, _per_boundary, _watch
from benchmarks.report_rounds import CAREFUL, RFFLOW, Part, Round, Setting, against, column, megabytes, record
from benchmarks.report_start import (
    composition,
    composition_figures,
    early,
    early_figures,
    growth,
    growth_figures,
    startup,
    startup_figures,
)
from benchmarks.sides import KEEP, LIBRARIES, Trained, run_hydra, run_plain, run_rfflow

# --- the sides --------------------------------------------------------------------------------------------------------

LOOP = "TRL as it comes, one process"
EACH = "TRL as it comes, one process a run"
BASIC = "TRL as it comes, Hydra's basic launcher"
JOBLIB = "TRL as it comes, Hydra's joblib launcher"
HALVING = "rfflow, policy=halving"


def sides(setting: Setting) -> Round:
    """Every way to train the same runs."""
    work, to = setting.work.runs(setting.runs), setting.folder
    plain = work.as_it_comes()
    ways: dict[str, Callable[[], Trained]] = {
        RFFLOW: lambda: run_rfflow(work, to / "rfflow"),
        CAREFUL: lambda: run_plain(work, to / "careful", one_process=True, environ=KEEP),
        LOOP: lambda: run_plain(plain, to / "loop", one_process=True),
        EACH: lambda: run_plain(plain, to / "each", one_process=False),
    }
    if setting.model == "tiny":
        ways[BASIC] = lambda: run_hydra(plain, to / "basic", [])
        if "joblib" in setting.libraries:
            launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
            ways[JOBLIB] = lambda: run_hydra(plain, to / "joblib", launcher)
    found: Round = {}
    reference = None
    for name, train in ways.items():
        trained = train()
        found[name] = record(trained, reference)
        reference = reference or trained
    metric = ["objective.metric=loss", "policy=halving"]
    found[HALVING] = record(run_rfflow(work, to / "halving", extra=metric))
    return found


def sides_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Wall and processor time of each, ratios, memory, and when one can compare and decide."""
    wanted = {CAREFUL: 0.97, LOOP: 0.65, EACH: 0.50} if runs >= 8 else {}
    names = [name for name in rounds[0] if name != HALVING]
    told = [Figure(f"{name}: wall", column(rounds, name, "seconds"), "s") for name in names]
    for name in names[1:]:
        told.append(Figure(f"rfflow / {name}: wall", against(rounds, RFFLOW, name), "", wanted.get(name)))
        if name != JOBLIB:  # whose processes' time the system does not tell
            told.append(Figure(f"rfflow / {name}: processor time", against(rounds, RFFLOW, name, "cpu")))
    told += [Figure(f"{name}: peak memory of a process", megabytes(rounds, name), "MB") for name in names]
    told.append(Figure("first comparison of all runs, rfflow", column(rounds, RFFLOW, "first"), "s"))
    for name in (CAREFUL, LOOP, EACH):
        if name in names:
            quarters = tuple(one[name]["quarters"][-1] for one in rounds)
            share = ratios(column(rounds, RFFLOW, "first"), quarters)
            told.append(Figure(f"first comparison, rfflow / {name}", share))
    told.append(Figure("decision (the end), rfflow with policy=halving", column(rounds, HALVING, "seconds"), "s"))
    told += [
        Figure(f"decision, rfflow with policy=halving / {name}", against(rounds, HALVING, name))
        for name in (RFFLOW, CAREFUL, LOOP, EACH)
        if name in names
    ]
    return told


# --- how it grows with runs and chunks --------------------------------------------------------------------------------

COUNTS = (2, 4, 8, 16)
CHUNKS = (1, 4, 16)


def scale(setting: Setting) -> Round:
    """2, 4, 8 and 16 runs, and three numbers of chunks, against TRL by a careful person."""
    most = max(count for count in COUNTS if count <= 2 * setting.runs)
    work = replace(setting.work, steps=max(setting.work.steps, 16))
    theirs = run_plain(work.runs(most), setting.folder / "careful", one_process=True, environ=KEEP)
    found = {CAREFUL: record(theirs)}
    for count in COUNTS:
        if count <= most:
            trained = run_rfflow(work.runs(count), setting.folder / f"runs-{count}")
            found[f"{count} runs"] = record(trained, theirs)
    for chunks in CHUNKS:
        trained = run_rfflow(work.runs(2), setting.folder / f"chunks-{chunks}", chunks=chunks)
        found[f"{chunks} chunks"] = record(trained, theirs)
    return found


def scale_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Ratios by number of runs, and times by number of chunks."""
    told = []
    for count in COUNTS:
        name = f"{count} runs"
        if name not in rounds[0]:
            continue
        ended = tuple(one[CAREFUL]["ended"][count - 1] for one in rounds)
        cpu = tuple(one[CAREFUL]["cpu_ended"][count - 1] for one in rounds)
        told += [
            Figure(f"{name}: rfflow, wall", column(rounds, name, "seconds"), "s"),
            Figure(f"{name}: rfflow / careful TRL, wall", ratios(column(rounds, name, "seconds"), ended)),
            Figure(f"{name}: rfflow / careful TRL, processor time", ratios(column(rounds, name, "cpu"), cpu)),
            Figure(f"{name}: rfflow, peak memory", megabytes(rounds, name), "MB"),
        ]
    told.append(Figure("careful TRL, peak memory", megabytes(rounds, CAREFUL), "MB"))
    for chunks in CHUNKS:
        name = f"{chunks} chunks"
        told += [
            Figure(f"{name}, 2 runs: rfflow, wall", column(rounds, name, "seconds"), "s"),
            Figure(f"{name}, 2 runs: rfflow, processor time", column(rounds, name, "cpu"), "s"),
            Figure(f"{name}, 2 runs: rfflow, peak memory", megabytes(rounds, name), "MB"),
        ]
    return told


# --- trainers ---------------------------------------------------------------------------------------------------------

TRAINERS = ("SFT", "DPO", "GRPO")


def trainers(setting: Setting) -> Round:
    """Each trainer, against the same by a careful person."""
    found: Round = {}
    for kind in TRAINERS:
        work = replace(setting.work, steps=4).of_kind(kind, setting.folder / kind).runs(2)
        theirs = run_plain(work, setting.folder / f"{kind}-careful", one_process=True, environ=KEEP)
        found[f"{kind}, careful TRL"] = record(theirs)
        found[f"{kind}, rfflow"] = record(run_rfflow(work, setting.folder / f"{kind}-rfflow"), theirs)
    return found


def trainers_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Ratios by trainer."""
    told = []
    for kind in TRAINERS:
        pair = f"{kind}, rfflow", f"{kind}, careful TRL"
        told += [
            Figure(f"{kind}, 2 runs: rfflow, wall", column(rounds, pair[0], "seconds"), "s"),
            Figure(f"{kind}, 2 runs: rfflow / careful TRL, wall", against(rounds, *pair)),
            Figure(f"{kind}, 2 runs: rfflow / careful TRL, processor time", against(rounds, *pair, "cpu")),
        ]
    return told


# --- boundaries -------------------------------------------------------------------------------------------------------


WHOLE = "everything that is not training"


def boundary(setting: Setting) -> Round:
    """What lies between two chunks, by part, in processor time of the thread that trains."""
    work = replace(setting.work, steps=max(setting.work.steps, 16)).runs(2)
    watched = _watch(work, setting.folder / "boundary", 16)
    parts = {name: 1000 * seconds for name, seconds in _per_boundary(watched, "cpu").items()}
    whole = {f"{WHOLE}, with waiting": 1000 * _per_boundary(watched)[WHOLE]}
    return {RFFLOW: {**parts, **whole, "training, a chunk": 1000 * _on_device(watched)}}


def boundary_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Milliseconds a boundary."""
    limit = {WHOLE: 20.0}
    return [
        Figure(f"16 chunks of 2 runs: {name}, a boundary", column(rounds, RFFLOW, name), "ms", limit.get(name))
        for name in rounds[-1][RFFLOW]
        if all(name in one[RFFLOW] for one in rounds)
    ]


def pair(setting: Setting) -> Round:
    """The same runs by rfflow and by a careful script, and nobody else."""
    work = setting.work.runs(setting.runs)
    theirs = run_plain(work, setting.folder / "careful", one_process=True, environ=KEEP)
    return {CAREFUL: record(theirs), RFFLOW: record(run_rfflow(work, setting.folder / "rfflow"), theirs)}


def pair_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Processor time, which other programs disturb least."""
    told = [Figure(f"{name}: processor time", column(rounds, name, "cpu"), "s") for name in (RFFLOW, CAREFUL)]
    wanted = 0.97 if runs >= 8 else None
    return [*told, Figure("rfflow / careful TRL: processor time", against(rounds, RFFLOW, CAREFUL, "cpu"), "", wanted)]


PARTS: Mapping[str, Part] = {
    "sides": Part("Every way to train the same runs", sides, sides_figures),
    "scale": Part("2 to 16 runs, 1 to 16 chunks", scale, scale_figures, models=("tiny",)),
    "trainers": Part("SFT, DPO and GRPO", trainers, trainers_figures, models=("tiny",)),
    "pair": Part("rfflow and a careful script alone", pair, pair_figures, by_default=False),
    "boundary": Part("Between two chunks, in processor time", boundary, boundary_figures),
    "startup": Part("Start-up", startup, startup_figures, models=("tiny",)),
    "early": Part("What stopping early saves, and its regret, on recorded curves", early, early_figures, rounds=1),
    "growth": Part("150 runs in one experiment", growth(150), growth_figures, models=("tiny",), rounds=1),
    "growth500": Part(
        "500 runs in one experiment", growth(500), growth_figures, models=("tiny",), rounds=1, by_default=False
    ),
    "composition": Part(
        "Composing 512", composition, composition_figures, models=("tiny",), rounds=1, by_default=False
    ),
}


def libraries() -> frozenset[str]:
    """Return which libraries there are that only the benchmark uses."""
    found = (LIBRARIES / "hydra_plugins/hydra_joblib_launcher").is_dir()
    return frozenset({"joblib"} if found else ())


def timed(measure: Callable[[Setting], Round], setting: Setting) -> tuple[Round, float]:
    """Return a round, and the seconds it took."""
    begun = time.monotonic()
    return measure(setting), time.monotonic() - begun
