"""A run leaves no trace in the libraries that all runs share: what they have changed is looked for, whatever it is.

What is known to be a run's own is in test_context.py; this finds what a later version of a library will add.
"""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric

from rfflow.config.spec import MemorySpec, RunSpec
from rfflow.runs.events import Finished
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run
from rfflow.worker.shared import Shared
from rfflow.worker.training.context import GlobalState, RunContext
from rfflow.worker.training.session import TrainingSession
from tests.support.tiny import run_spec

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "torch", "transformers", "trl")
COUNTERS = {
    "torch.utils.hooks.RemovableHandle.next_id",
    "torch.utils.checkpoint.DefaultDeviceType._default_device_type",
}
"""Numbers for names, and a kind of device that is everybody's: no result depends on them."""

ARGS: Mapping[str, Any] = {
    "activation_checkpointing": True,
    "bf16": True,
    "full_determinism": True,
    "log_level": "debug",
    "neftune_noise_alpha": 5,
    "report_to": "tensorboard",
    "save_strategy": "steps",
    "save_steps": 2,
}
"""Each has a library keep something for the process."""


def look() -> dict[str, Any]:
    """Return the attributes of all modules and classes of the libraries, with the sizes of their collections."""
    seen: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in LIBRARIES and isinstance(module, types.ModuleType):
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    seen |= {f"{name}.{key}.{attribute}": _mark(item) for attribute, item in list(vars(value).items())}
                elif not isinstance(value, types.ModuleType):
                    seen[f"{name}.{key}"] = _mark(value)
    return seen


def _mark(value: Any) -> Any:
    if isinstance(value, dict | list | set):
        return id(value), len(value)
    return repr(value) if isinstance(value, bool | int | float | str) else id(value)


def train(shared: Shared, number: int, spec: RunSpec, root: Path) -> None:
    session = TrainingSession(Run(number, spec, (), RunPaths(root / f"runs/{number}")).card(), shared)
    session.prepare()
    while not isinstance(session.advance(), Finished):
        pass
    session.close()


def test_a_run_leaves_no_trace(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Less what the first of its kind imports and looks up, which the second finds there."""
    shared = Shared(Fabric(accelerator="cpu", devices=1), MemorySpec(), 42)
    spec = run_spec(tiny_model, tiny_data, args=ARGS, chunks=1, dataset={"max_samples": 8})
    train(shared, 0, spec, tmp_path)
    before, state, environ = look(), GlobalState.capture(shared.fabric.device), dict(os.environ)
    level = logging.getLogger("transformers").level
    train(shared, 1, spec, tmp_path)
    after = look()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= COUNTERS
    now = GlobalState.capture(shared.fabric.device)
    assert (now.torch_settings, now.warnings, now.clients) == (state.torch_settings, state.warnings, state.clients)
    assert dict(os.environ) == environ and logging.getLogger("transformers").level == level


def test_a_trace_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers

    context = RunContext(Fabric(accelerator="cpu", devices=1).device, tmp_path / "run.log")
    before = look()
    with context.active():
        monkeypatch.setattr(transformers.Trainer, "train", lambda self: None)
    after = look()
    assert {name for name in before if before[name] != after[name]} == {"transformers.trainer.Trainer.train"}
