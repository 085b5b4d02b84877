"""What a step gains where a model remembers its walks: the same TRL trainer with and without, in turn, in one process.

    python benchmarks/walks.py                     # a tiny model of 2 layers, and one of 30
    python benchmarks/walks.py --model smollm2     # the demo's model, 2 x 64 tokens

The weights of each pair are compared to the last bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figure, ratios, table
from benchmarks.work import Work, make_work


def step_seconds(work: Work, folder: Path, *, remembers: bool) -> tuple[float, bytes]:
    """Train one run by TRL; return the seconds of a step, and what was trained."""
    import torch
    import trl
    from datasets import load_dataset
    from peft import LoraConfig

    from rfflow.worker.training.walks import remember_walks

    trainer = trl.SFTTrainer(
        model=str(work.model),
        args=trl.SFTConfig(output_dir=str(folder), model_init_kwargs={"dtype": "float32"}, **work.args),
        train_dataset=load_dataset("json", data_files=str(work.data), split="train").select(range(len(work.rows()))),
        peft_config=LoraConfig(**work.peft),
    )
    if remembers:
        remember_walks(trainer.model)
    began = time.perf_counter()
    trainer.train()
    seconds = (time.perf_counter() - began) / trainer.state.global_step
    trained = [weight.detach().flatten() for weight in trainer.model.parameters() if weight.requires_grad]
    return seconds, torch.cat(trained).numpy().tobytes()


def main() -> None:
    """Measure, and print a table."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from tests.support.tiny import make_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    figures = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        work = make_work(given.model, given.steps, folder)
        works = {given.model: work}
        if given.model == "tiny":
            works = {"2 layers": work, "30 layers": replace(work, model=make_model(folder / "deep", layers=30))}
        for name, each in works.items():
            plain, remembered = [], []
            for _ in range(given.repeat):
                (one, without), (other, with_them) = (
                    step_seconds(each, folder / "out", remembers=remembers) for remembers in (False, True)
                )
                plain.append(one)
                remembered.append(other)
                if without != with_them:
                    raise SystemExit("What was trained differs.")
            figures += [
                Figure(f"{name}: a step, remembered / walked", ratios(remembered, plain)),
                Figure(f"{name}: a step, walked", tuple(1000 * seconds for seconds in plain), "ms"),
            ]
    print(table(figures))


if __name__ == "__main__":
    main()
