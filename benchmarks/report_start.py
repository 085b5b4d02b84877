"""Parts of the report: start-up, composition, many runs, and what stopping early saves."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from benchmarks.figures import Figure, ratios
from benchmarks.parts import add_callback
from benchmarks.report_rounds import MB, RFFLOW, Round, Setting, column, record
from benchmarks.sides import KEEP, ROOT, run_plain, run_process, run_rfflow


def startup(setting: Setting) -> Round:
    """How long until help, until all is composed, and until the first step."""
    path = {"PYTHONPATH": str(ROOT)}
    found: Round = {}

    def composed(count: int) -> dict[str, float]:
        sweep = [f"hydra.sweep.dir={setting.folder}/composed-{count}", f"seed=range({count})"]
        words = ["-m", "benchmarks.composing", "+recipe=sft", "--multirun", *sweep]
        process = run_process([sys.executable, *words], setting.folder, path, name=f"composed-{count}")
        return {"seconds": process.seconds, "cpu": process.cpu}

    helped = run_process([sys.executable, "-m", "rfflow", "--help"], setting.folder, path, name="help")
    found["rfflow --help"] = {"seconds": helped.seconds, "cpu": helped.cpu}
    for count in (8, 64):
        found[f"{count} composed"] = composed(count)
    work = replace(setting.work, steps=4).runs(8)
    ours = run_rfflow(work, setting.folder / "eight")
    theirs = run_plain(work, setting.folder / "eight-careful", one_process=True, environ=KEEP)
    found["8 runs, rfflow"] = record(ours, theirs)
    found["8 runs, careful TRL"] = record(theirs)
    return found


def startup_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Seconds from the start of the process."""
    ours, theirs = "8 runs, rfflow", "8 runs, careful TRL"
    return [
        Figure("rfflow --help", column(rounds, "rfflow --help", "seconds"), "s", 2.0),
        Figure(
            "8 configurations composed, from the start of the process", column(rounds, "8 composed", "seconds"), "s"
        ),
        Figure("64 configurations composed, from the start", column(rounds, "64 composed", "seconds"), "s"),
        Figure("8 runs: rfflow's first step, all 8 built", column(rounds, ours, "began"), "s"),
        Figure("8 runs: careful TRL's first step, 1 built", column(rounds, theirs, "began"), "s"),
        Figure(
            "8 runs of 4 steps: rfflow / careful TRL, processor time",
            ratios(column(rounds, ours, "cpu"), column(rounds, theirs, "cpu")),
        ),
    ]


def composition(setting: Setting) -> Round:
    """512 configurations, composed; some minutes."""
    path = {"PYTHONPATH": str(ROOT)}
    words = ["-m", "benchmarks.composing", "+recipe=sft", "--multirun", f"hydra.sweep.dir={setting.folder}/512"]
    process = run_process([sys.executable, *words, "seed=range(512)"], setting.folder, path, name="composed-512")
    return {"512 composed": {"seconds": process.seconds, "cpu": process.cpu}}


def composition_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Seconds from the start of the process."""
    return [Figure("512 configurations composed, from the start", column(rounds, "512 composed", "seconds"), "s")]


# --- growth -----------------------------------------------------------------------------------------------------------


def growth(count: int) -> Callable[[Setting], Round]:
    """Return what watches so many runs in one experiment."""

    def measure(setting: Setting) -> Round:
        folder = setting.folder / f"growth-{count}"
        folder.mkdir(parents=True)
        path = folder / "growth.json"
        work = replace(setting.work, steps=4).runs(count)
        trained = run_rfflow(work, folder, extra=[add_callback("growth", path), "checkpoint.every=null"])
        chunks = json.loads((trained.root / "timeline.json").read_text(encoding="utf-8"))["chunks"]
        chunks.sort(key=lambda chunk: chunk["started"])
        gaps = [after["started"] - before["ended"] for before, after in pairwise(chunks)]
        found = json.loads(path.read_text(encoding="utf-8"))
        times = {"gaps": _thinned(gaps), "between": _thinned(found["between"]), "start_cpu": found["start"]}
        return {RFFLOW: {**record(trained), "samples": _thinned(found["samples"]), **times}}

    return measure


def _thinned(values: list[Any], most: int = 200) -> list[Any]:
    step = -(-len(values) // most)
    return values[::step]


def growth_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """What the first and the last tenth of the boundaries see."""
    told = []
    for name, unit, scale in (("memory", "MB", MB), ("threads", "", 1), ("files", "", 1)):
        for where, part in (("first", slice(0, None)), ("last", slice(-1, None))):
            values = []
            for one in rounds:
                samples = [sample[name] / scale for sample in one[RFFLOW]["samples"]]
                tenth = max(1, len(samples) // 10)
                chosen = samples[:tenth] if part.start == 0 else samples[-tenth:]
                values.append(statistics.fmean(chosen))
            told.append(Figure(f"{name}, {where} tenth of all boundaries", tuple(values), unit))
    for key, how in (("gaps", ""), ("between", ", processor time")):
        for where in ("first", "last"):
            values = []
            for one in rounds:
                gaps = [1000 * gap for gap in one[RFFLOW][key]]
                tenth = max(1, len(gaps) // 10)
                values.append(statistics.median(gaps[:tenth] if where == "first" else gaps[-tenth:]))
            told.append(Figure(f"between two chunks, {where} tenth{how}", tuple(values), "ms"))
    told.append(Figure("from the start to the first step", column(rounds, RFFLOW, "began"), "s"))
    told.append(Figure("from the start to the first step, processor time", column(rounds, RFFLOW, "start_cpu"), "s"))
    return told


# --- early stopping ---------------------------------------------------------------------------------------------------


def early(setting: Setting) -> Round:
    """Every policy on recorded curves: chunks spent, and how much worse than the best what is chosen ends."""
    from benchmarks.early_stopping_demo import CURVES, POLICIES, read_bank, run_all

    bank = [curve for _, curve in read_bank(CURVES / f"{setting.model}.json")]
    sizes = [size for size in (64,) if size <= len(bank)]
    found = run_all(bank, sizes, seeds=10)
    return {
        f"{name}, {size} configurations": {
            "spent": [100 * one.spent for one in found[size, name]],
            "regret": [one.regret for one in found[size, name]],
        }
        for size in sizes
        for name in POLICIES
    }


def early_figures(rounds: Sequence[Round], runs: int) -> list[Figure]:
    """Medians over draws of the bank."""
    return [
        Figure(f"{name}: {what}", tuple(found[key]), unit)
        for name, found in rounds[0].items()
        for what, key, unit in (("chunks spent", "spent", "%"), ("regret, eval_loss", "regret", ""))
    ]
