"""On one GPU: rfflow against TRL alone, activations kept and recomputed, and two workers on the GPU against one.

    python benchmarks/gpu.py --model small --repeat 3
    python benchmarks/gpu.py --model large --repeat 3 --seconds 400    # stops beginning repetitions after so long

*small* has the shape of SmolLM2-135M and leaves a GPU waiting for Python; *large* has a billion weights, and keeps it
busy. Both are made on the spot, from random numbers. The sides take turns, each in processes of its own, and the
adapters of each are compared to the last bit. ``--device cpu --model tiny`` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, ratios, table
from benchmarks.sides import ROOT, Trained, run_plain, run_process, run_rfflow
from benchmarks.work import ARGS, Work, same_tensors


class Shape(NamedTuple):
    """A Llama, and the batches that it is given."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    batch: int
    tokens: int


SHAPES = {
    "tiny": Shape(64, 2, 4, 128, 512, 2, 64),
    "small": Shape(576, 30, 9, 1536, 49152, 4, 128),
    "large": Shape(2048, 16, 32, 8192, 49152, 8, 512),
}


def make_work(name: str, steps: int, runs: int, folder: Path, device: str) -> Work:
    """Make a model and rows that fill its batches."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.tiny import make_tokenizer

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=max(1, shape.heads // 3),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(device).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    lines = [
        json.dumps(
            {"prompt": f"Row {row}: ", "completion": "".join(chr(97 + row * n % 26) for n in range(shape.tokens))}
        )
        for row in range(1, steps * shape.batch + 1)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    args = {
        **ARGS,
        "use_cpu": device == "cpu",
        "bf16": device != "cpu",
        "max_length": shape.tokens,
        "logging_steps": 10,
    }
    args["per_device_train_batch_size"] = shape.batch
    return Work(folder / "model", folder / "rows.jsonl", steps, args=args).runs(runs)


def run_workers(work: Work, folder: Path, workers: int, device: str) -> Trained:
    """Train with so many workers on the first GPU, each a process."""
    folder.mkdir()
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps(work.jobs(work.data, folder / "plain")), encoding="utf-8")
    command = [sys.executable, __file__, "--device", device, "--train", str(jobs), "--workers", str(workers)]
    process = run_process(command, folder, {"PYTHONPATH": str(ROOT)}, name="workers")
    adapters = tuple(
        folder / f"experiment/runs/{number}/checkpoints/final/adapter_model.safetensors"
        for number in range(len(work.rates))
    )
    return Trained(process.seconds, process.cpu, 0.0, process.peak, adapters)


def train_with_workers(jobs: Path, workers: int, device: str) -> None:
    """Train what a file lists, in this process and its workers."""
    from rfflow.config.spec import DatasetSpec, ExperimentSpec, ModelSpec, TrainerSpec, TrainSpec
    from rfflow.engine.engine import Engine
    from rfflow.runs.paths import ExperimentPaths
    from rfflow.slots.processes import ProcessSlots

    spec = ExperimentSpec("workers", accelerator=device)
    slots = ProcessSlots(spec, [{"CUDA_VISIBLE_DEVICES": "0"}] * workers)
    engine = Engine(spec, ExperimentPaths(jobs.parent / "experiment"), slots=slots)
    for number, job in enumerate(json.loads(jobs.read_text(encoding="utf-8"))):
        run = TrainSpec(
            model=ModelSpec(name=job["model"], kwargs={"dtype": "float32"}),
            dataset=DatasetSpec(path=job["data"], eval_size=0),
            trainer=TrainerSpec(target="trl.SFTTrainer", args_target="trl.SFTConfig", args=job["args"]),
            peft={"_target_": "peft.LoraConfig", **job["peft"]},
            chunks=4,
            evaluate=False,
        )
        engine.add(run, number)
    engine.run()
    engine.close()


class MemoryWatch:
    """The most memory of the GPU that was ever in use while something ran, in MiB."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while not self._over.wait(0.3):
            try:
                shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            except (OSError, subprocess.CalledProcessError):
                return
            self.most = max(self.most, int(shown.split()[0]))


def main() -> None:
    """Measure, and print a table after each repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--sides", default="rfflow,careful,default,one worker,two workers")
    parser.add_argument("--out", type=Path, help="of the report (benchmarks/results), to be a part of it")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train_with_workers(given.train, given.workers, given.device)
        return
    began = time.monotonic()
    found: defaultdict[str, list[Trained]] = defaultdict(list)
    memory: defaultdict[str, list[float]] = defaultdict(list)
    differ: set[str] = set()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        work = make_work(given.model, given.steps, given.runs, folder, given.device)
        sides: dict[str, Callable[[Path], Trained]] = {
            "rfflow": lambda to: run_rfflow(work, to),
            "careful": lambda to: run_plain(work, to, one_process=True),
            "default": lambda to: run_plain(work.as_it_comes(), to, one_process=True),
            "one worker": lambda to: run_workers(work, to, 1, given.device),
            "two workers": lambda to: run_workers(work, to, 2, given.device),
        }
        chosen = [side.strip() for side in given.sides.split(",")]
        for number in range(given.repeat):
            if time.monotonic() - began > given.seconds:
                break
            for side in chosen:
                with MemoryWatch() as watch:
                    trained = sides[side](folder / f"{side}-{number}")
                found[side].append(trained)
                memory[side].append(float(watch.most))
                if not same_tensors(found[chosen[0]][-1].adapters, trained.adapters):
                    differ.add(side)
                print(f"{side}: {trained.seconds:.1f} s, {watch.most} MiB", flush=True)
            print(table(figures(found, memory)), flush=True)
    print(f"equal to {chosen[0]} to the last bit:", ", ".join(s for s in chosen if s not in differ))
    print("different:", ", ".join(sorted(differ)) or "none")
    if given.out and found:
        import torch

        from benchmarks.report_page import write_page

        about = {
            "part": "gpu",
            "model": given.model,
            "device": torch.cuda.get_device_name(0) if given.device == "cuda" else "no GPU: tried on a CPU",
            "runs": given.runs,
            "steps": given.steps,
            "figures": [asdict(figure) for figure in figures(found, memory)],
            "different": sorted(differ),
        }
        (given.out / "parts").mkdir(parents=True, exist_ok=True)
        (given.out / f"parts/gpu-{given.model}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        write_page(given.out)


def figures(found: Any, memory: Any) -> list[Figure]:
    """Return what there is to tell."""
    seconds = {side: [trained.seconds for trained in all_of] for side, all_of in found.items()}
    pairs = [
        ("rfflow / TRL, one process, activations kept", "rfflow", "careful"),
        ("rfflow / TRL as it comes, one process", "rfflow", "default"),
        ("two workers on the GPU / one", "two workers", "one worker"),
        ("one worker in a process / in this one", "one worker", "rfflow"),
    ]
    told = [Figure(name, ratios(seconds[a], seconds[b])) for name, a, b in pairs if a in seconds and b in seconds]
    told += [Figure(f"{side}: wall time", tuple(all_of), "s") for side, all_of in seconds.items()]
    return told + [Figure(f"{side}: most memory in use", tuple(all_of), "MiB") for side, all_of in memory.items()]


if __name__ == "__main__":
    main()
