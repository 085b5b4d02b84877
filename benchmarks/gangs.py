"""What a gang gains: the same runs through their base in one pass and one by one, in turn, in one process.

    python benchmarks/gangs.py                          # a tiny model, 2 to 8 runs of 1 x 32 to 4 x 128 tokens
    python benchmarks/gangs.py --model smollm2 --runs 4 --shapes 1x32,2x128

Every other chunk of the runs is trained together. Seconds are of the processor where one thread computes, else by the
clock. What is compared is all that a step takes, the runs' own code, optimizers and switches among it.
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


def measure(
    model: Path, runs: int, rows: int, length: int, steps: int, rounds: int, folder: Path, accelerator: str
) -> tuple[list[float], list[float]]:
    """Train runs chunk by chunk, every other one together.

    Returns:
        seconds of a step of one run, together and one by one, a chunk each; the first of each is left out.
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

    chunks = 2 * (rounds + 1)
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
    taken: tuple[list[float], list[float]] = ([], [])
    form = worker._gangs.form
    for chunk in range(chunks - 1):  # the last would save
        is_fused = chunk % 2 == 0
        worker._gangs.form = form if is_fused else lambda sessions: None  # type: ignore[method-assign]
        orders = [Train(number, chunk * steps, is_saved=False) for number in range(runs)]
        began = now(device)
        worker.do(Train(orders[0].run, orders[0].done, is_saved=False, beside=tuple(orders[1:])))
        while (told := worker.advance()) is not None:
            assert not hasattr(told[1], "error"), told
        if chunk > 1:
            taken[0 if is_fused else 1].append((now(device) - began) / steps / runs)
    worker.close()
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder")
    parser.add_argument("--runs", default="2,4,8")
    parser.add_argument("--shapes", default="1x32,1x128,4x128", help="rows x tokens")
    parser.add_argument("--steps", type=int, default=6, help="of a chunk")
    parser.add_argument("--rounds", type=int, default=5, help="chunks that are timed, each way")
    parser.add_argument("--accelerator", default="cpu")
    given = parser.parse_args(arguments)
    print(
        "| model | runs | batch | together, ms | one by one, ms | ratio | from | to |",
        "|---|---|---|---|---|---|---|---|",
        sep="\n",
    )
    for shape in given.shapes.split(","):
        rows, length = map(int, shape.split("x"))
        for runs in map(int, given.runs.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                model = (
                    make_work(given.model, given.steps, root).model
                    if given.model in ("tiny", "smollm2")
                    else Path(given.model)
                )
                together, singly = measure(
                    model, runs, rows, length, given.steps, given.rounds, root, given.accelerator
                )
            ratios = [alone / fused for fused, alone in zip(together, singly, strict=False)]
            cells = [1e3 * statistics.median(together), 1e3 * statistics.median(singly)]
            cells += [statistics.median(ratios), min(ratios), max(ratios)]
            print(f"| {given.model} | {runs} | {shape} |", " | ".join(f"{cell:.2f}" for cell in cells), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
