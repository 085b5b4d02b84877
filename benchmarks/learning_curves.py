"""Record a bank of real learning curves: 64 configurations of the demo's model, each trained to the end.

    python benchmarks/learning_curves.py                   # train all, write benchmarks/curves/smollm2.json: 20 minutes
    python benchmarks/learning_curves.py --parts 0 --live  # train 16 of them again, steered by halving while they train

``early_stopping_demo.py`` lets every policy steer them. The bank is made in four experiments of 16 runs each, so that
one that breaks off can be made again alone. A run is 16 steps of one conversation of at most 56 tokens, in 8 chunks,
evaluated on 3 others at the end of each: much shorter than anybody's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
BANK = HERE / "curves" / "smollm2.json"
CHUNKS = 8
LRS = "3e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1"  # from too small to too large
RANKS = "4,16"
PARTS = (
    ("peft.target_modules=all-linear", "trainer.args.lr_scheduler_type=linear"),
    ("peft.target_modules=[q_proj,v_proj]", "trainer.args.lr_scheduler_type=linear"),
    (
        "peft.target_modules=all-linear",
        "trainer.args.lr_scheduler_type=constant_with_warmup",
        "trainer.args.warmup_steps=8",
    ),
    (
        "peft.target_modules=[q_proj,v_proj]",
        "trainer.args.lr_scheduler_type=constant_with_warmup",
        "trainer.args.warmup_steps=8",
    ),
)
"""What the configurations of an experiment have in common; those that warm up for half of their steps start late."""
SETTINGS = (
    "name=bank",
    f"chunks={CHUNKS}",
    "dataset.formatting_func.system=Be brief.",
    "dataset.formatting_func.max_characters=120",
    "dataset.max_samples=16",
    "dataset.eval_size=3",
    "trainer.args.max_length=56",
    "trainer.args.per_device_train_batch_size=1",
    "trainer.args.per_device_eval_batch_size=4",
    "trainer.args.eval_on_start=false",
    "checkpoint.every=null",
    "control.enabled=false",
    "engine.on_nan=ignore",  # a run that diverges is recorded to its end, too
)


def command(part: int, folder: Path, *more: str) -> list[str]:
    """Return the command that trains one part of the bank."""
    sweep = (f"hydra.sweep.dir={folder}", f"lr={LRS}", f"peft.r={RANKS}")
    return [sys.executable, "-m", "rfflow", "+recipe=sft", "--multirun", *SETTINGS, *sweep, *PARTS[part], *more]


def train(part: int, folder: Path, *more: str) -> dict[str, Any]:
    """Train a part; return what it took."""
    words = command(part, folder, *more)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, cwd=HERE.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def collect(part: int, folder: Path) -> list[dict[str, Any]]:
    """Return the curves that an experiment left: the mean training loss and the evaluation loss of every chunk."""
    with open(folder / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves = []
    for row in rows:
        found: dict[str, dict[int, list[float]]] = {"loss": defaultdict(list), "eval_loss": defaultdict(list)}
        text = (folder / "runs" / row["run"] / "metrics.jsonl").read_text(encoding="utf-8")
        for entry in map(json.loads, text.splitlines()):
            for name in found.keys() & entry["metrics"].keys():
                found[name][entry["chunk"]].append(float(entry["metrics"][name]))
        chunks = range(1, int(row["chunk"]) + 1)
        curves.append(
            {
                "part": part,
                "run": int(row["run"]),
                "overrides": row["overrides"],
                "state": row["state"],
                **{name: [_mean(by_chunk[c]) for c in chunks] for name, by_chunk in found.items()},
            }
        )
    return curves


def _mean(values: list[float]) -> float:
    return round(fmean(values), 6) if values else float("nan")


def add(bank: Path, key: str, part: int, took: dict[str, Any], curves: list[dict[str, Any]]) -> None:
    """Put a part into the file, in the place of what was there of it."""
    known = json.loads(bank.read_text(encoding="utf-8")) if bank.exists() else {"settings": list(SETTINGS)}
    section = known.setdefault(key, {"took": {}, "curves": []})
    section["took"][str(part)] = took
    section["curves"] = [curve for curve in section["curves"] if curve["part"] != part] + curves
    section["curves"].sort(key=lambda curve: (curve["part"], curve["run"]))
    bank.parent.mkdir(parents=True, exist_ok=True)
    bank.write_text(_one_line_a_curve(known), encoding="utf-8")


def _one_line_a_curve(bank: dict[str, Any]) -> str:
    lines = ["{", f' "settings": {json.dumps(bank["settings"])},']
    keys = [key for key in ("grid", "live") if key in bank]
    for key in keys:
        took = json.dumps(dict(sorted(bank[key]["took"].items())))
        lines += [f' "{key}": {{', f'  "took": {took},', '  "curves": [']
        lines += [",\n".join(f"   {json.dumps(curve)}" for curve in bank[key]["curves"]), "  ]"]
        lines.append(" }" if key == keys[-1] else " },")
    return "\n".join([*lines, "}"]) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", type=lambda text: [int(word) for word in text.split(",")], default=[*range(len(PARTS))]
    )
    parser.add_argument("--live", action="store_true", help="steer them by policy=halving, to compare with its replay")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "outputs" / "bank")
    parser.add_argument("--bank", type=Path, default=BANK)
    args = parser.parse_args()
    for part in args.parts:
        key, more = ("live", ("policy=halving",)) if args.live else ("grid", ())
        folder = args.folder / f"{key}-{part}"
        took = train(part, folder, *more)
        add(args.bank, key, part, took, collect(part, folder))


if __name__ == "__main__":
    main()
