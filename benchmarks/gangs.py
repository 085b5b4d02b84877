"""What a gang gains: the same runs through their base one by one and in one pass, in turn, in one process.

    python benchmarks/gangs.py --runs 4 --shapes 1x32       # two minutes and less: one row for each form
    python benchmarks/gangs.py                              # 2 to 16 runs of 1, 2, 4 rows of 32, 128, 256 tokens
    python benchmarks/gangs.py --model smollm2 --runs 4 --shapes 1x32,2x128 --forms slice

Chunks of the runs are trained in turn one by one and in each form. Seconds are of the processor where one thread
computes, else by the clock. What is compared is all that a step takes, the runs' own code, optimizers and switches
among it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.work import make_work

TEXT = " ".join(f"word{index} is {index * 7 % 97} and" for index in range(400))
ALONE = "one by one"
FORMS = ("slice", "cat", "grouped")


def measure(
    model: Path,
    runs: int,
    rows: int,
    length: int,
    *,
    forms: Sequence[str],
    steps: int,
    rounds: int,
    folder: Path,
    accelerator: str,
) -> dict[str, list[float]]:
    """Train runs chunk by chunk, in turn one by one and in each form.

    Returns:
        seconds of a step of one run, a chunk each, by how it was trained; the first of each is left out.
    """
    import torch

    from rfflow.config.spec import ExperimentSpec
    from rfflow.runs.events import Prepare, Ready, Train
    from rfflow.runs.paths import RunPaths
    from rfflow.runs.run import RunCard
    from rfflow.worker.device import make_device_fabric
    from rfflow.worker.gangs.calibration import now
    from rfflow.worker.worker import Worker
    from tests.support.tiny import run_spec, write_jsonl

    ways = (ALONE, *forms)
    chunks = len(ways) * (rounds + 1) + 1  # the last would save
    data = write_jsonl(
        folder / "rows.jsonl", [{"text": f"{index} {TEXT}"[: 6 * length]} for index in range(chunks * steps * rows)]
    )
    spec = ExperimentSpec(name="gangs", accelerator=accelerator, fusion="slice")
    worker = Worker(spec, make_device_fabric(spec), lambda run, event: None)
    device = torch.device(worker.device)
    args: Mapping[str, Any] = {
        "per_device_train_batch_size": rows,
        "max_length": length,
        "use_cpu": device.type == "cpu",
        "bf16": device.type != "cpu",
        "logging_steps": 1000,
    }
    for number in range(runs):
        one = run_spec(
            model,
            data,
            chunks=chunks,
            evaluate=False,
            model_kwargs={"dtype": "float32" if device.type == "cpu" else "bfloat16"},
            args={**args, "learning_rate": 1e-4 * (number + 1)},
            peft={"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.05},
        )
        (event,) = worker.do(Prepare(RunCard(number, one, f"Run {number}", RunPaths(folder / str(number)))))
        assert isinstance(event, Ready), event
    taken: dict[str, list[float]] = {way: [] for way in ways}
    form = worker._gangs.form
    for chunk in range(chunks - 1):
        way = ways[chunk % len(ways)]
        worker._gangs.form = (lambda sessions: None) if way == ALONE else form  # type: ignore[method-assign]
        orders = [Train(number, chunk * steps, is_saved=False) for number in range(runs)]
        began = now(device)
        worker.do(Train(orders[0].run, orders[0].done, is_saved=False, beside=tuple(orders[1:])))
        if way != ALONE:
            gang = worker._gangs._gang
            assert gang is not None and len(gang.members) == runs, "not all of them go together"
            gang._trunk.form = way
        while (told := worker.advance()) is not None:
            assert not hasattr(told[1], "error"), told
        if chunk >= len(ways):
            taken[way].append((now(device) - began) / steps / runs)
    worker.close()
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder")
    parser.add_argument("--runs", default="2,4,8,16")
    parser.add_argument("--shapes", default="1x32,2x32,4x32,1x128,2x128,4x128,1x256,2x256,4x256", help="rows x tokens")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--steps", type=int, default=3, help="of a chunk")
    parser.add_argument("--rounds", type=int, default=5, help="chunks that are timed, each way")
    parser.add_argument("--accelerator", default="cpu")
    given = parser.parse_args(arguments)
    forms = given.forms.split(",")
    if unknown := set(forms) - set(FORMS):
        parser.error(f"--forms names {', '.join(sorted(unknown))}. Allowed: {', '.join(FORMS)}.")
    print(
        "| model | batch | runs | one by one, ms | "
        + " | ".join(f"{form}, ms | ratio, from-to" for form in forms)
        + " |",
        "|---" * (4 + 2 * len(forms)) + "|",
        sep="\n",
        flush=True,
    )
    for shape in given.shapes.split(","):
        rows, length = map(int, shape.split("x"))
        for runs in map(int, given.runs.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                is_made = given.model in ("tiny", "smollm2")
                model = make_work(given.model, given.steps, root).model if is_made else Path(given.model)
                taken = measure(
                    model,
                    runs,
                    rows,
                    length,
                    forms=forms,
                    steps=given.steps,
                    rounds=given.rounds,
                    folder=root,
                    accelerator=given.accelerator,
                )
            cells = [f"{1e3 * statistics.median(taken[ALONE]):.2f}"]
            for form in forms:
                ratios = [alone / fused for alone, fused in zip(taken[ALONE], taken[form], strict=True)]
                cells.append(f"{1e3 * statistics.median(taken[form]):.2f}")
                cells.append(f"{statistics.median(ratios):.2f}, {min(ratios):.2f}-{max(ratios):.2f}")
            print(f"| {given.model} | {shape} | {runs} |", " | ".join(cells), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
