"""What a step gains where activations are kept: the same TRL trainer, kept, every third layer, every layer, in turn.

Steps in processor time.

    python benchmarks/activations.py                     # a tiny model of 12 layers, 2 x 64 tokens
    python benchmarks/activations.py --model smollm2     # the demo's model
    python benchmarks/activations.py --batch 4 --length 256 --full

Every layer is what TRL does as it comes. The weights of each round are compared to the last bit. What a step keeps is
what ``activation_checkpointing=auto`` counts on for a batch of that size; no batch is longer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, ratios, table
from benchmarks.work import Work, make_work

ON = "every layer, as TRL comes"
SIDES: Mapping[str, Mapping[str, Any]] = {
    "kept": {"activation_checkpointing": False},
    "every third layer": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"every_n_layers": 3},
    },
    ON: {"activation_checkpointing": True},
}


def train(work: Work, folder: Path, args: Mapping[str, Any]) -> tuple[float, bytes, tuple[float, float, float]]:
    """Train one run by TRL.

    Returns:
        the processor's seconds of a step, which other programs disturb least; what was trained; the bytes that a step
        keeps: all, with every third layer recomputed, with every one.
    """
    import torch
    import trl
    from datasets import load_dataset
    from peft import LoraConfig

    from rfflow.worker.training.activations import measure
    from rfflow.worker.training.longest import Batch

    given = {**work.args, **args}
    trainer = trl.SFTTrainer(
        model=str(work.model),
        args=trl.SFTConfig(output_dir=str(folder), model_init_kwargs={"dtype": "float32"}, **given),
        train_dataset=load_dataset("json", data_files=str(work.data), split="train").select(range(len(work.rows()))),
        peft_config=LoraConfig(**work.peft) if work.peft else None,
    )
    kept, batch = measure(trainer), Batch(given["per_device_train_batch_size"], given["max_length"])
    assert kept is not None
    began = time.process_time()
    trainer.train()
    seconds = (time.process_time() - began) / trainer.state.global_step
    trained = [weight.detach().flatten() for weight in trainer.model.parameters() if weight.requires_grad]
    sizes = kept.all(batch), kept.with_every(3, batch), kept.with_every(1, batch)
    return seconds, torch.cat(trained).numpy().tobytes(), sizes


def main() -> None:
    """Measure, and print a table."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from tests.support.tiny import make_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="rows of a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row at most")
    parser.add_argument("--full", action="store_true", help="train every weight instead of an adapter")
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        work = make_work(given.model, given.steps, folder).batches_of(given.batch)
        work = replace(work, args={**work.args, "max_length": given.length}, peft={} if given.full else work.peft)
        if given.model == "tiny":
            work = replace(work, model=make_model(folder / "deep", layers=12))
        for _ in range(given.repeat):
            trained = set()
            for name, args in SIDES.items():
                one, weights, sizes = train(work, folder / "out", args)
                seconds[name].append(one)
                trained.add(weights)
            if len(trained) > 1:
                raise SystemExit("What was trained differs.")
    what = f"{given.model}, {given.batch} x {given.length}, {'every weight' if given.full else 'LoRA'}"
    figures = [
        *(Figure(f"{what}: a step, {name} / {ON}", ratios(seconds[name], seconds[ON])) for name in SIDES if name != ON),
        *(Figure(f"{what}: a step, {name}", tuple(1000 * one for one in seconds[name]), "ms") for name in SIDES),
        *(
            Figure(f"{what}: a step keeps, {name}", (size / 1e6,), "MB")
            for name, size in zip(SIDES, sizes, strict=True)
        ),
    ]
    print(table(figures))


if __name__ == "__main__":
    main()
