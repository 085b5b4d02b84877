"""The promise on a GPU: runs that take turns on one end as the same TRL scripts alone, to the last bit.

Everything here needs a GPU (``pytest -m gpu``), and PyTorch's deterministic kernels, which both sides are given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rfflow.config.spec import ExperimentSpec, MemorySpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.slots.processes import ProcessSlots
from rfflow.slots.slots import Slots
from rfflow.worker.memory.memory import Memory, free_memory
from rfflow.worker.training import activations
from tests.slots.test_exactness import differences, left_by
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import make_model, run_spec, write_jsonl
from tests.worker.training.test_exactness import outcomes
from tests.worker.training.test_on_a_cpu import QUANTISED, train_quantised_alone
from tests.worker.training.test_snapshot_alignment import (
    dpo_spec,
    evaluation_pairs,
    evaluation_prompts,
    grpo_spec,
    pairs,
    prompts,
)

__all__ = ["dpo_spec", "evaluation_pairs", "evaluation_prompts", "grpo_spec", "pairs", "prompts"]

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask for kernels that add in one order; what has none only warns."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(spec: RunSpec, **args: Any) -> RunSpec:
    """Return the same run on the GPU."""
    return replace(spec, trainer=replace(spec.trainer, args={**spec.trainer.args, "use_cpu": False, **args}))


def train(
    specs: Sequence[RunSpec], root: Path, slots: Slots | None = None, memory: MemorySpec | None = None
) -> tuple[list[Run], dict[str, Outcome]]:
    """Train them as one experiment on the GPU."""
    log: Mapping[str, Any] = {"log": {"_target_": "rfflow.tracking.metrics_log.MetricsLog"}}
    spec = ExperimentSpec("test", accelerator="cuda", callbacks=log, memory=memory or MemorySpec())
    engine = Engine(spec, ExperimentPaths(root), slots=slots)
    with outcomes() as ended:
        runs = [engine.add(each, number) for number, each in enumerate(specs)]
        engine.run()
    engine.close()
    assert [run.state for run in runs] == [RunState.COMPLETED] * len(runs), [run.error for run in runs]
    return runs, ended


@pytest.mark.parametrize("memory", [MemorySpec(), MemorySpec(device_limit="9MB", host_limit=0)], ids=["", "one fits"])
def test_runs_end_as_trl_alone(
    memory: MemorySpec,
    tiny_model: Path,
    tiny_data: Path,
    dpo_spec: Callable[..., RunSpec],
    grpo_spec: Callable[..., RunSpec],
    tmp_path: Path,
) -> None:
    """SFT with dropout, in bfloat16, with recomputed activations and of every weight; DPO; GRPO: on one GPU at once.

    And the same where there is room for one run, so that the others wait on the disk.
    """
    specs = {
        "sft": on_gpu(run_spec(tiny_model, tiny_data)),
        "bf16": on_gpu(run_spec(tiny_model, tiny_data, args={"learning_rate": 1e-3}), bf16=True),
        "recomputed": on_gpu(run_spec(tiny_model, tiny_data, peft={"r": 8}), activation_checkpointing=True),
        "every weight": on_gpu(run_spec(tiny_model, tiny_data, peft=None, args={"max_steps": 10})),
        "and again": on_gpu(run_spec(tiny_model, tiny_data, peft=None, args={"max_steps": 10, "learning_rate": 1e-3})),
        "dpo": on_gpu(dpo_spec()),
        "grpo": on_gpu(grpo_spec()),
    }
    _, together = train(list(specs.values()), tmp_path / "together", memory=memory)
    for number, (name, spec) in enumerate(specs.items()):
        alone = train_alone(spec, tmp_path / "alone" / name)
        assert not together[str(number)].differences(alone), name


def test_two_workers_on_one_gpu_end_as_one(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Processes of their own, whose runs move between them, change no bit either."""
    specs = [on_gpu(run_spec(tiny_model, tiny_data, args={"learning_rate": rate})) for rate in (1e-3, 1e-4, 1e-5)]
    one, _ = train(specs, tmp_path / "one")
    shown = {"CUDA_VISIBLE_DEVICES": "0"}
    two, _ = train(specs, tmp_path / "two", ProcessSlots(ExperimentSpec("test", accelerator="cuda"), [shown, shown]))
    assert {chunk.slot for run in two for chunk in run.chunks} == {0, 1}
    for alone, run in zip(one, two, strict=True):
        assert not differences(left_by(run), left_by(alone)), f"run {run.number}"


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_runs_share_one_base_and_end_as_alone(
    name: str, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Adapters of two ranks on one base in four or eight bits."""
    pytest.importorskip("bitsandbytes")
    quantization, dtype = QUANTISED[name]
    node = {"_target_": "transformers.BitsAndBytesConfig", **quantization}
    kwargs = {"quantization_config": node, "dtype": dtype}
    first = on_gpu(run_spec(tiny_model, tiny_data, model_kwargs=kwargs))
    specs = [first, replace(first, peft={**(first.peft or {}), "r": 8})]
    _, together = train(specs, tmp_path / "together")
    for number, spec in enumerate(specs):
        alone = train_quantised_alone(spec, quantization, dtype, tmp_path / f"alone-{number}")
        assert not together[str(number)].differences(alone)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of eight layers, wide enough for its activations to outweigh everything else."""
    return make_model(tmp_path_factory.mktemp("wide") / "model", layers=8, hidden=512)


def peak_of(spec: RunSpec, root: Path) -> tuple[int, str]:
    """Train it; return the most bytes that tensors took, and what its log says of activations."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, seen = torch.cuda.memory_allocated(), []
    observe = Memory.observe

    def note(memory: Memory) -> None:
        seen.append(torch.cuda.max_memory_allocated())
        observe(memory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "observe", note)
        (run,), _ = train([spec], root)
    (line,) = [line for line in run.paths.log.read_text().splitlines() if "Activations" in line] or [""]
    return max(seen) - before, line


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_what_activations_take_is_foreseen(
    bf16: bool, wide_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that keeping them takes over recomputing them is no more than was foreseen, and most of that."""
    caplog.set_level(logging.INFO, logger="rfflow")
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{n} ", "completion": "x" * 500} for n in range(32)])
    args = {"max_length": 512, "per_device_train_batch_size": 8, "activation_checkpointing": "auto"}
    spec = on_gpu(run_spec(wide_model, data, chunks=1, evaluate=False, args=args), bf16=bf16)
    foreseen: list[tuple[float, float]] = []
    choose = activations.choose

    def note(kept: activations.Kept, batch: Any, *given: Any) -> int:
        foreseen.append((kept.all(batch), kept.with_every(1, batch)))
        return choose(kept, batch, *given)

    monkeypatch.setattr(activations, "choose", note)
    kept, said = peak_of(spec, tmp_path / "kept")
    assert "Activations are kept" in said
    recomputed, _ = peak_of(on_gpu(spec, activation_checkpointing=True), tmp_path / "recomputed")
    (whole, least), *_ = foreseen
    print(
        f"foreseen {whole / 1e6:.0f} and {least / 1e6:.0f} MB, measured {kept / 1e6:.0f} and {recomputed / 1e6:.0f} MB"
    )
    assert 0.5 * (whole - least) < kept - recomputed < (whole - least) / activations.SHARE


def test_a_run_that_is_out_of_memory_recomputes(
    wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device gives no more than keeping would take, and what was foreseen was too little."""
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"{n} ", "completion": "x" * 500} for n in range(64)])
    args = {"max_length": 512, "per_device_train_batch_size": 16, "activation_checkpointing": "auto"}
    spec = on_gpu(run_spec(wide_model, data, chunks=2, evaluate=False, args=args))
    monkeypatch.setattr(activations, "choose", lambda *_: 0)
    free_memory(torch.device("cuda"))
    whole = torch.cuda.get_device_properties(0).total_memory
    recomputed, _ = peak_of(on_gpu(spec, activation_checkpointing=True), tmp_path / "recomputed")
    kept, _ = peak_of(on_gpu(spec, activation_checkpointing=False), tmp_path / "kept")
    free_memory(torch.device("cuda"))
    between = (recomputed + kept) / 2 + torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(between / whole)
    try:
        (run,), _ = train([spec], tmp_path / "short")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert run.recomputes
