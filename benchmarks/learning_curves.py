"""Record banks of real learning curves: many configurations of one model, each trained to the end.

    python benchmarks/learning_curves.py --parts 0         # 64 of SmolLM2-135M, into curves/smollm2.json: half an hour
    python benchmarks/learning_curves.py                   # all four parts: 256
    python benchmarks/learning_curves.py --tiny            # 256 of a model of two layers, into curves/tiny.json
    python benchmarks/learning_curves.py --tiny --parts 0 --live  # a part again, steered by halving while it trains

``early_stopping_demo.py`` lets every policy steer them. A part is an experiment of its own, so that one that breaks off
can be made again alone. A run is 16 steps of one conversation of at most 56 tokens, in 8 chunks, evaluated on 3 others
at the end of each: much shorter than anybody's.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

HERE = Path(__file__).resolve().parent
CURVES = HERE / "curves"
CHUNKS = 8
RANKS = "4,16"
RATES = tuple(3e-5 * (1e-1 / 3e-5) ** (step / 31) for step in range(32))
"""Learning rates, from too small to too large."""
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


@dataclass(frozen=True)
class Bank:
    """What is trained, and where its curves go."""

    file: Path
    settings: tuple[str, ...]

    def command(self, part: int, folder: Path, *more: str) -> list[str]:
        """Return the command that trains one part."""
        rates = ",".join(f"{rate:.3g}" for rate in RATES)
        sweep = (f"hydra.sweep.dir={folder}", f"lr={rates}", f"peft.r={RANKS}")
        words = [*self.settings, *sweep, *PARTS[part], *more]
        return [sys.executable, "-m", "rfflow", "+recipe=sft", "--multirun", *words]


def demo(file: Path | None) -> Bank:
    """Return the bank of the demo's model."""
    return Bank(file or CURVES / "smollm2.json", SETTINGS)


def tiny(file: Path | None, folder: Path) -> Bank:
    """Return the bank of a model and data that are made on the spot; training it takes no time, so it can be larger."""
    from benchmarks.work import make_work

    work = make_work("tiny", CHUNKS * 2, folder)
    data = ("model=hub", f"model.name={work.model}", "dataset=local", f"dataset.path={work.data}")
    settings = (*data, *(word for word in SETTINGS if "formatting_func" not in word))
    return Bank(file or CURVES / "tiny.json", settings)


def train(words: Sequence[str]) -> dict[str, Any]:
    """Train a part; return what it took."""
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
    known = json.loads(bank.read_text(encoding="utf-8")) if bank.exists() else {}
    section = known.setdefault(key, {"took": {}, "curves": []})
    section["took"][str(part)] = took
    section["curves"] = [curve for curve in section["curves"] if curve["part"] != part] + curves
    section["curves"].sort(key=lambda curve: (curve["part"], curve["run"]))
    bank.parent.mkdir(parents=True, exist_ok=True)
    bank.write_text(_one_line_a_curve(known), encoding="utf-8")


def _one_line_a_curve(bank: dict[str, Any]) -> str:
    lines = ["{"]
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
    parser.add_argument("--bank", type=Path, help="the file, where it is another")
    parser.add_argument("--tiny", action="store_true", help="a tiny model instead of the demo's")
    args = parser.parse_args()
    bank = tiny(args.bank, args.folder / "made") if args.tiny else demo(args.bank)
    for part in args.parts:
        key, more = ("live", ("policy=halving",)) if args.live else ("grid", ())
        folder = args.folder / f"{bank.file.stem}-{key}-{part}"
        took = train(bank.command(part, folder, *more))
        add(bank.file, key, part, took, collect(part, folder))


if __name__ == "__main__":
    main()
