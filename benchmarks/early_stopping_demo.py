"""What stopping runs early saves, and what it costs, on recorded learning curves of real models.

    python benchmarks/early_stopping_demo.py               # print the tables (a minute)
    python benchmarks/early_stopping_demo.py --write       # and put them into docs/early_stopping.md

The curves are those of benchmarks/curves/, which ``learning_curves.py`` has trained. Every policy steers them through
rfflow's own scheduler. A seed draws configurations of the bank, and the order in which they are numbered.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.early_stopping import SEEDS, TOLERANCES, Nobody, Rounds, put_between, reached, reaches, spread
from rfflow.policies import Halving, Hyperband, Median, Policy, Rules
from rfflow.policies.simulation import Curve, Outcome, simulate

CURVES = Path(__file__).parent / "curves"
BANKS = {"smollm2.json": "SmolLM2-135M", "tiny.json": "A model of two layers"}
SIZES = (16, 64, 256)
BEGIN, END = "<!-- begin demo -->", "<!-- end demo -->"
RULES: list[dict[str, Any]] = [
    {"name": "sick", "when": "is_nan(loss) or loss > 3 * best.loss", "do": "delete"},
    {"name": "weak", "at_chunk": 1, "select": {"worst": "50%"}, "do": "stop"},
    {"name": "weaker", "at_chunk": 4, "select": {"worst": "50%"}, "do": "stop"},
]
POLICIES: dict[str, Callable[[], Policy]] = {
    "none (grid)": Nobody,
    "halving eta=2": lambda: Halving(2),
    "halving eta=4": lambda: Halving(4),
    "halving eta=2 min_chunks=2": lambda: Halving(2, 2),
    "hyperband eta=2": lambda: Hyperband(2),
    "median": Median,
    "rules (50% at 1 and 4)": lambda: Rules(RULES),
}


@dataclass(frozen=True)
class Figures:
    """Of one policy on one draw."""

    spent: float
    """Chunk-units trained, as a share of training all to the end."""
    regret: float
    """Evaluation loss of the chosen run over the best at the end."""
    units: float
    """The same, in units of the median configuration's."""
    speed: tuple[float, ...]
    """Chunk-units of training all, over those until some run shows a loss comparable to the best at the end; by
    training and by evaluation loss, and for each by tolerance. 0 where none does."""
    fair: tuple[float, ...]
    """The same, where one run after the other may stop, too, as soon as it shows such a loss."""


def read_bank(path: Path, key: str = "grid") -> list[tuple[dict[str, Any], Curve]]:
    """Return the records of a bank and their curves, numbered as they come."""
    records = json.loads(path.read_text(encoding="utf-8"))[key]["curves"]
    return [(record, _curve(number, record)) for number, record in enumerate(records)]


def _curve(number: int, record: dict[str, Any]) -> Curve:
    pairs = zip(record["loss"], record["eval_loss"], strict=True)
    return Curve(number, tuple({"loss": loss, "eval_loss": eval_loss} for loss, eval_loss in pairs))


def draw(bank: Sequence[Curve], size: int, seed: int) -> list[Curve]:
    """Return so many curves of the bank, none twice."""
    chosen = random.Random(f"{size} {seed}").sample(list(bank), size)
    return [replace(curve, number=number) for number, curve in enumerate(chosen)]


def measure(curves: Sequence[Curve], outcome: Outcome) -> Figures:
    """Return the figures."""
    ends = sorted(end for curve in curves if math.isfinite(end := curve.metrics[-1]["eval_loss"]))
    assert outcome.chosen is not None
    regret = outcome.chosen.metrics["eval_loss"] - ends[0]
    one_by_one = [(curve.number, chunk) for curve in curves for chunk in range(len(curve.metrics))]
    speed, fair = [], []
    for metric in ("loss", "eval_loss"):
        best = min(end for curve in curves if math.isfinite(end := curve.metrics[-1][metric]))
        for tolerance in TOLERANCES:
            before = reaches(curves, one_by_one, best * (1 + tolerance), metric)
            after = reaches(curves, outcome.order, best * (1 + tolerance), metric)
            assert before is not None
            speed.append(len(one_by_one) / after if after else 0.0)
            fair.append(before / after if after else 0.0)
    units = regret / (median(ends) - ends[0])
    return Figures(outcome.spent / len(one_by_one), regret, units, tuple(speed), tuple(fair))


def run_all(bank: Sequence[Curve], sizes: Sequence[int], seeds: int) -> dict[tuple[int, str], list[Figures]]:
    """Measure every policy on every draw."""
    figures: dict[tuple[int, str], list[Figures]] = {}
    for size in sizes:
        for seed in range(seeds):
            curves = draw(bank, size, seed)
            for name, make in POLICIES.items():
                figures.setdefault((size, name), []).append(measure(curves, simulate(curves, Rounds(make()))))
    return figures


# --- what is printed --------------------------------------------------------------------------------------------------


def tables(figures: dict[tuple[int, str], list[Figures]], sizes: Sequence[int]) -> str:
    """Return Markdown tables: medians, and in brackets the middle 80 % of the seeds."""
    lines = [
        "| policy | configurations | chunks spent | regret, eval_loss | regret, as above |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in POLICIES:
        for size in sizes:
            cells = figures[size, name]
            spent = spread([100 * cell.spent for cell in cells], "{:.0f}", " %")
            regret = spread([cell.regret for cell in cells], "{:.3f}")
            units = spread([cell.units for cell in cells], "{:.2f}")
            lines.append(f"| {name} | {size} | {spent} | {regret} | {units} |")
    for metric, words in ((0, "training"), (1, "evaluation")):
        heads = [f"{kind} {100 * tolerance:.0f} %" for kind in ("all /", "until /") for tolerance in TOLERANCES]
        lines += ["", f"Time to a comparable best {words} loss:", ""]
        lines += [f"| policy | configurations | {' | '.join(heads)} |", "|---|--:" + "|--:" * len(heads) + "|"]
        part = slice(metric * len(TOLERANCES), (metric + 1) * len(TOLERANCES))
        for name in POLICIES:
            for size in sizes:
                cells = figures[size, name]
                columns = [*zip(*(cell.speed[part] for cell in cells), strict=True)]
                columns += [*zip(*(cell.fair[part] for cell in cells), strict=True)]
                lines.append(f"| {name} | {size} | {' | '.join(reached(list(column)) for column in columns)} |")
    return "\n".join(lines)


def live(path: Path) -> str:
    """Compare the part of the bank that was trained again under halving with its replay; say what both took."""
    bank = json.loads(path.read_text(encoding="utf-8"))
    if "live" not in bank:
        return ""
    lines = []
    for part, took in bank["live"]["took"].items():
        steered = {record["run"]: record for record in bank["live"]["curves"] if str(record["part"]) == part}
        grid = {record["run"]: record for record in bank["grid"]["curves"] if str(record["part"]) == part}
        outcome = simulate([_curve(number, record) for number, record in grid.items()], Halving())
        expected = {run.number: (run.state, run.chunk) for run in outcome.scene.runs}
        seen = {number: (record["state"], len(record["eval_loss"])) for number, record in steered.items()}
        same = sum(expected[number] == seen[number] for number in seen)
        equal = all(
            record["eval_loss"] == grid[number]["eval_loss"][: len(record["eval_loss"])]
            for number, record in steered.items()
        )
        total = sum(len(record["eval_loss"]) for record in grid.values())
        spent = sum(chunks for _, chunks in seen.values())
        before = bank["grid"]["took"][part]
        lines.append(
            f"Trained under `policy=halving`, {same} of {len(seen)} runs ended in the state and after the chunk that "
            f"the replay foresees; {spent} of {total} chunks ({100 * spent / total:.0f} %; replay {outcome.spent}); "
            f"all evaluation losses {'equal' if equal else 'do not equal'} those of the grid. The command took "
            f"{took['wall_s']:.0f} s ({took['cpu_s']:.0f} s of processor time), that of the grid to the end "
            f"{before['wall_s']:.0f} s ({before['cpu_s']:.0f} s): {100 * took['wall_s'] / before['wall_s']:.0f} % "
            f"({100 * took['cpu_s'] / before['cpu_s']:.0f} %), start-up included."
        )
    return "\n".join(lines)


def section(path: Path, title: str, seeds: int) -> str:
    """Return what there is to say of one bank."""
    bank = [curve for _, curve in read_bank(path)]
    sizes = sorted({size for size in (*SIZES, len(bank)) if size <= len(bank)})
    took = sum(part["cpu_s"] for part in json.loads(path.read_text(encoding="utf-8"))["grid"]["took"].values())
    lines = [f"### {title}: {len(bank)} configurations", ""]
    lines += [f"Training them all to the end took {took:.0f} s of processor time. {live(path)}".strip(), ""]
    return "\n".join([*lines, tables(run_all(bank, sizes, seeds), sizes)])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=CURVES, help="of the banks")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/early_stopping.md")
    args = parser.parse_args()
    banks = [(args.folder / name, title) for name, title in BANKS.items() if (args.folder / name).exists()]
    text = "\n\n".join(section(path, title, args.seeds) for path, title in banks)
    print(text)
    if args.write:
        put_between(BEGIN, END, text)


if __name__ == "__main__":
    main()
