"""The proof in one command: ``python benchmarks/report.py``, or ``make bench`` and ``make bench PARTS=sides,startup``.

All sides of a part take turns, round after round, each in processes of its own, and the adapters of every pair are
compared to the last bit. What was measured lies in ``benchmarks/results/parts``, a JSON file a part and model; the
report (``benchmarks/results/README.md``, its pictures, ``report.json``) is made of whatever is there. Rounds that are
there are not measured again, so that it can be done in slices: a first call begins with a round of everything, a later
one goes on. ``--again`` forgets what is there of the parts chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# A script's own folder is on the path; the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import machine
from benchmarks.report_page import write_page
from benchmarks.report_parts import PARTS, Part, Setting, libraries, timed
from benchmarks.work import MODELS, Work, make_work

RESULTS = Path(__file__).parent / "results"
STEPS = {"tiny": 16, "smollm2": 4}
RUNS = {"tiny": 4, "smollm2": 8}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing while there is time, and write the report; 1 if two sides had different bits."""
    args = _parser().parse_args(argv)
    if not args.render:
        _measure(args)
    page, differ = write_page(args.out)
    print(f"\nThe report is {page}")
    for name in differ:
        print(f"Not the same bits: {name}", file=sys.stderr)
    return 1 if differ else 0


def _measure(args: argparse.Namespace) -> None:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rfflow-report-") as folder:
        works: dict[str, Work] = {}
        if args.again:
            for name, _, model in _chosen(args):
                _file(args.out, name, model).unlink(missing_ok=True)
        for number in range(args.repeat):
            for name, part, model in _chosen(args):
                file = _file(args.out, name, model)
                record = (
                    json.loads(file.read_text(encoding="utf-8")) if file.exists() else _new(name, part, model, args)
                )
                if len(record["rounds"]) > number or len(record["rounds"]) >= (part.rounds or args.repeat):
                    continue
                left = args.seconds - (time.monotonic() - begun)
                if left < max([*record["took"], 0.0]):
                    print(f"{name} ({model}): no time left for round {number + 1}", flush=True)
                    continue
                if model not in works:
                    works[model] = make_work(model, args.steps or STEPS[model], Path(folder) / "work")
                place = Path(folder) / f"{name}-{model}-{number}"
                place.mkdir()
                setting = Setting(model, works[model], record["runs"], place, libraries())
                found, took = timed(part.measure, setting)
                record["rounds"].append(found)
                record["took"].append(took)
                record["machine"] = machine()
                _write(file, record)
                print(f"{name} ({model}), round {number + 1}: {took:.0f} s", flush=True)


def _chosen(args: argparse.Namespace) -> Iterator[tuple[str, Part, str]]:
    for name, part in PARTS.items():
        if name in args.only if args.only else part.by_default:
            yield from ((name, part, model) for model in args.model or MODELS if model in part.models)


def _file(out: Path, name: str, model: str) -> Path:
    return out / "parts" / f"{name}-{model}.json"


def _new(name: str, part: Part, model: str, args: argparse.Namespace) -> dict[str, Any]:
    runs, steps = args.runs or RUNS[model], args.steps or STEPS[model]
    return {"part": name, "model": model, "runs": runs, "steps": steps, "rounds": [], "took": []}


def _write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".writing")
    aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_parts, metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--model", action="append", choices=MODELS, help="may be given twice (default: both)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds a part (default 3)")
    parser.add_argument("--runs", type=int, metavar="N", help="runs an experiment (default: 4 tiny, 8 smollm2)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps a run (default: 16 tiny, 4 smollm2)")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no round that would end later, as far as is known"
    )
    parser.add_argument("--again", action="store_true", help="forget what was measured of the parts chosen")
    parser.add_argument("--render", action="store_true", help="measure nothing; write the report of what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to (default: benchmarks/results)")
    return parser


def _parts(text: str) -> list[str]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in wanted if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(PARTS)}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
