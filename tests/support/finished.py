"""Experiments that are over, left on disk without training: adapters drawn at random, and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfflow.checkpointing.experiment_file import RunRecord, SavedExperiment, write
from rfflow.config.spec import Objective
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState

QUANTISED = {
    "_target_": "transformers.BitsAndBytesConfig",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "float32",
}


def leave_experiment(root: Path, model: Path | str, runs: Sequence[Mapping[str, Any] | None], **section: Any) -> Path:
    """Leave runs that have completed, the first one best; return the experiment's directory.

    Args:
        root: where.
        model: the base.
        runs: of each the arguments of ``LoraConfig``, or of another configuration by ``_target_``; ``None`` trains
            every weight. Run 1 is then ``runs[1]``.
        section: more of the section ``model``; with ``auto_class`` other models than language models.
    """
    records = []
    for number, peft in enumerate(runs):
        folder = root / "runs" / str(number) / "checkpoints" / "final"
        told = {"name": str(model), "dtype": "float32", **section}
        make_final(folder, told, peft, seed=number)
        trainer = "trl.RewardTrainer" if "auto_class" in section else "trl.SFTTrainer"
        config = {
            "model": told,
            "trainer": {"_target_": trainer, "args": {"_target_": "trl.SFTConfig", "hub_token": "(hidden)"}},
            "dataset": {"path": "rows.jsonl"},
            "peft": peft,
        }
        metrics = {"loss": 2.0 + number, "eval_loss": 3.0 + number, "epoch": 1.0}
        chunks = tuple(ChunkResult(number, n, 5 * n + 5, metrics, 0.0, 1.5) for n in range(2))
        overrides = (f"seed={number}",)
        records.append(
            RunRecord(
                number,
                RunState.COMPLETED,
                overrides,
                ("+recipe=sft", *overrides),
                f"runs/{number}",
                config=json.dumps(config),
                chunks=chunks,
                metrics=metrics,
                plan=ChunkPlan((5, 10), 2),
            )
        )
    saved = SavedExperiment(
        root.name, 0.0, tuple(records), objective=Objective(), versions={"rfflow": "0"}, is_finished=True
    )
    write(ExperimentPaths(root).state, saved, {}, is_first=True)
    return root


def make_final(folder: Path, model: Mapping[str, Any], peft: Mapping[str, Any] | None, seed: int) -> None:
    """Save an adapter (or all weights) that has changed everywhere, and the base's tokenizer."""
    import torch
    import transformers
    from hydra.utils import get_object
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    kwargs = {key: value for key, value in model.items() if key not in ("name", "auto_class", "quantization_config")}
    auto = getattr(transformers, model.get("auto_class", "AutoModelForCausalLM"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = auto.from_pretrained(model["name"], **kwargs)
        if peft is None:
            trained = base
        else:
            given = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **peft}
            target = given.pop("_target_", None)
            if target is not None:
                given = {key: value for key, value in peft.items() if key != "_target_"}
            trained = get_peft_model(base, get_object(target)(**given) if target else LoraConfig(**given))
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    trained.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model["name"]).save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
