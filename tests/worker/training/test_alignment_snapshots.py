"""Preference training and training on one's own generations go on from a checkpoint as if never interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric

from rfflow.config.spec import MemorySpec, RunSpec
from rfflow.runs.events import WarmStart
from rfflow.worker.models.safetensors_io import SafetensorsIO
from rfflow.worker.shared import Shared
from tests.support.plain import train_alone
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_dpo import preferences
from tests.worker.training.test_exactness import outcomes
from tests.worker.training.test_snapshot import begin, finish, snapshots_of


@pytest.fixture
def shared() -> Shared:
    return Shared(Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()]), MemorySpec(), 42)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPO": ("DPO", {"disable_dropout": False}),
    "DPO, precomputed": ("DPO", {"disable_dropout": False, "precompute_ref_log_probs": True}),
    "GRPO": ("GRPO", {}),
    "GRPO, in cycles": ("GRPO", {"steps_per_generation": 2, "num_iterations": 2, "num_train_epochs": 2}),
}


def make(name: str, tiny_model: Path, folder: Path) -> RunSpec:
    kind, args = VARIANTS[name]
    rows: list[Any] = preferences(24) if kind == "DPO" else [{"prompt": row["prompt"]} for row in make_rows(12)]
    file = write_jsonl(folder / "rows.jsonl", rows)
    run = run_spec(tiny_model, file, chunks=3, trainer=f"trl.{kind}Trainer", args_target=f"trl.{kind}Config", args=args)
    if kind == "DPO":
        return run
    values = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
    values |= {"max_completion_length": 4, "num_generations": 2, "learning_rate": 1e-2}
    kwargs = {"reward_funcs": ["tests.worker.training.test_grpo.few_vowels"]}
    return replace(run, trainer=replace(run.trainer, args=values, kwargs=kwargs))


@pytest.mark.parametrize("between", [False, True], ids=["at boundaries", "wherever Ctrl-C may fall"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_equals_the_script_alone(
    name: str, between: bool, tiny_model: Path, tmp_path: Path, shared: Shared
) -> None:
    spec = make(name, tiny_model, tmp_path)
    first = begin(spec, tmp_path / "first", shared)
    taken = snapshots_of(first, tmp_path / "snapshots", between=between)
    first.close()
    alone = train_alone(spec, tmp_path / "alone")
    step, folder = taken[len(taken) // 2]
    with outcomes() as ended:
        finish(begin(spec, tmp_path / "again", shared, checkpoint=folder))
    assert not ended["again"].differences(alone), f"{name}, from step {step}"


def test_a_clone_that_starts_warm_generates_for_the_next_prompts(
    tiny_model: Path, tmp_path: Path, shared: Shared
) -> None:
    """It begins with the prompts of the chunk after its parent's, whole groups of them, and wraps round."""
    spec = make("GRPO", tiny_model, tmp_path)
    parent = begin(spec, tmp_path / "parent", shared)
    parent.advance()
    parent.keep_weights()
    start = WarmStart(parent=0, weights=parent.run.paths.weights, first_chunk=1)
    clone = begin(spec, tmp_path / "clone", shared, warm_start=start)
    with clone.context.active():
        orders = [
            [tuple(row["prompt"] for row in batch) for batch in session._coroutine.trainer.get_train_dataloader()]  # type: ignore[union-attr]
            for session in (parent, clone)
        ]
    assert orders[1] == orders[0][2:] + orders[0][:2]
    assert all(batch[0] == batch[1] and batch[2] == batch[3] for batch in orders[1])
    finish(clone)
    parent.close()
