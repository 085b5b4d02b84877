"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Results, markdown, read_results, table, write_readme, write_results
from benchmarks.parts import PARTS, RUNS, Bench
from benchmarks.sides import ROOT
from benchmarks.work import MODELS, make_work

STEPS = {"tiny": 32, "smollm2": 8}
WITHOUT_MODEL = ("startup",)
OF_LENGTH = ("wall", "saving", "first")  # the longer the runs, the less weighs what is paid once
ON_TINY = ("ops",)  # what is measured there does not depend on the model


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, and write what was asked for."""
    args = _parser().parse_args(argv)
    titles = {part: title for part, (title, _) in PARTS.items()}
    if args.tables:
        print(markdown(args.out, titles))
    else:
        _measure(args)
    if args.write_readme:
        write_readme(args.out, titles)
    return 0


def _measure(args: argparse.Namespace) -> None:
    results, _ = read_results(args.out)
    results_now: Results = {}
    folder = Path(tempfile.mkdtemp(prefix="rfflow-benchmarks-"))
    begun = time.monotonic()
    try:
        for model in args.model or MODELS:
            steps = args.steps or STEPS[model]
            bench = Bench(model, make_work(model, steps, folder), folder / model, args.repeat, args.runs)
            for part in args.only or PARTS:
                title, measure = PARTS[part]
                label = "" if part in WITHOUT_MODEL else model
                if part in OF_LENGTH:
                    label += f", {steps} steps a run"
                if (part in ON_TINY and model != "tiny") or label in results_now.get(part, ()):
                    continue
                print(f"\n{title}" + (f" ({label})" if label else ""), flush=True)
                figures = measure(bench)
                results.setdefault(part, {})[label] = results_now.setdefault(part, {})[label] = figures
                write_results(args.out, results)
                print(table(figures), flush=True)
    except BaseException:
        print(f"What was written until now is in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(f"\n{time.monotonic() - begun:.0f} s; all figures are in {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/against_trl.py",
        description="Run rfflow and plain TRL in turn on the same work, and print ratios.",
        epilog="See benchmarks/README.md for what the figures mean.",
    )
    parser.add_argument(
        "--model", action="append", choices=MODELS, help="what to train; may be given twice (default: both)"
    )
    parser.add_argument("--repeat", type=_positive, default=3, metavar="N", help="how often each side runs (default 3)")
    parser.add_argument("--only", type=_parts, metavar="PART,...", help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument(
        "--runs", type=_counts, default=RUNS, metavar="N,...", help="runs an experiment has (default 4,8)"
    )
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="optimizer steps a run (default 32 tiny, 8 smollm2)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "outputs/benchmarks/results.json",
        help="JSON of all figures; what is measured now replaces what is there of the same part and model",
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing; print what the JSON file holds")
    parser.add_argument("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 1 up")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted(_positive(part) for part in text.split(",")))


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(PARTS)}")
    return [part for part in PARTS if part in wanted]
