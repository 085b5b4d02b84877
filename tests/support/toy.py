"""Runs that only count, for tests of what happens around training: an experiment of them takes milliseconds.

Everything but the trainer is real: engine, scheduler, steering, inbox, journal, memory.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric

from rfflow.checkpointing.writer import Writer
from rfflow.config.spec import (
    CheckpointSpec,
    ControlSpec,
    DatasetSpec,
    ExperimentSpec,
    MemorySpec,
    ModelSpec,
    Node,
    Objective,
    QuotasSpec,
    RunSpec,
    TrainerSpec,
    TrainSpec,
)
from rfflow.control.inbox import Inbox
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError, OpError
from rfflow.runs.chunks import ChunkPlan
from rfflow.runs.events import Boundary, Finished, Pause, Ready, WarmStart
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run
from rfflow.slots.processes import ProcessSlots
from rfflow.slots.slots import Slots
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.models.safetensors_io import SafetensorsIO
from rfflow.worker.shared import Shared
from tests.support.counting import STEPS_A_CHUNK, CountingWorker

STATE_BYTES = 16
"""What a toy run holds in memory."""

SETTINGS = ("lr", "chunks", "fails_at", "ends_at", "breaks")


def toy_spec(chunks: int = 4, **settings: Any) -> RunSpec:
    """Return a run that counts.

    ``fails_at`` and ``ends_at`` are the chunk in which it raises or after which it ends early; ``breaks`` names how it
    cannot be built; ``rewarded`` makes it log a reward, and ``starts`` an
    evaluation before its first step.
    """
    return TrainSpec(
        model=ModelSpec("toy"),
        dataset=DatasetSpec(path="toy"),
        trainer=TrainerSpec("toy", "toy"),
        peft={},
        chunks=chunks,
        config={"lr": 1, **settings},
    )


class ToyComposer:
    """Composes clones from the few settings that toy runs have."""

    def compose_clone(
        self, parent: Run, overrides: Sequence[str], number: int, directory: Path
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        spec = parent.spec
        for override in overrides:
            key, _, text = override.partition("=")
            if key not in SETTINGS:
                raise ConfigError(f"Could not override {key!r}.")
            value = yaml.safe_load(text)
            change = {"chunks": value} if key == "chunks" else {"config": {**spec.config, key: value}}
            spec = replace(spec, **change)
        return spec, tuple(overrides), None


class ToyContext:
    """Nothing is global to a toy run."""

    switch_seconds = 0.0

    def active(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def give(self, environ: Mapping[str, str]) -> None:
        """Look at no environment."""


class ToyTrainee:
    """Counts its steps in a tensor, which goes wherever suspended runs go."""

    def __init__(self, run: Run, shared: Shared, *, capture_output: bool, hydra: Any):
        self.run = run
        self.context = ToyContext()
        self.holdings: RunTensors | None = None
        self.state = torch.zeros(STATE_BYTES // 8, dtype=torch.int64)
        self.is_closed = False
        self._shared = shared
        self._step = 0
        self._unkept = False

    def prepare(
        self,
        warm_start: WarmStart | None = None,
        *,
        checkpoint: Path | None = None,
        step: int = 0,
        is_at_boundary: bool = False,
    ) -> Ready:
        match self.run.spec.config.get("breaks"):
            case "config":
                raise ConfigError(f"Run {self.run.number} cannot be built.")
            case "unexpected":
                raise RuntimeError("shape mismatch deep inside a library")
            case "memory":
                raise MemoryError
        if warm_start is not None and self.run.spec.config.get("breaks") == "architecture":
            raise OpError("the first difference")
        if checkpoint is not None:
            self._step = json.loads((checkpoint / "toy.json").read_text())["step"]
            self.state += self._step
            self._unkept = True
        file = self.run.paths.root / ".suspended.safetensors"
        self.holdings = RunTensors(self._shared.fabric, lambda: [self.state], file)
        self.holdings.measure()
        self._chunks = self.run.spec.chunks
        return Ready(ChunkPlan(tuple(STEPS_A_CHUNK * (n + 1) for n in range(self._chunks)), self._chunks))

    def advance(self) -> Pause:
        assert not self.is_closed and self.holdings is not None
        chunk = self._step // STEPS_A_CHUNK
        if self.run.spec.config.get("fails_at") == chunk:
            raise RuntimeError("the toy broke")
        self.state += STEPS_A_CHUNK  # raises unless it has come home
        self._step += STEPS_A_CHUNK
        assert self.state.tolist() == [self._step] * self.state.numel(), "the state is not what was left"
        self._unkept = True
        # Different for each run, and never monotonous, so that best and worst change places.
        metrics = {"eval_loss": float((self.run.number * 7 + chunk * 5) % 11)}
        is_last = chunk + 1 == self._chunks or self.run.spec.config.get("ends_at") == chunk
        logs = [(self._step, {"loss": 1.0})]
        if self.run.spec.config.get("starts") and chunk == 0:
            logs.insert(0, (0, {"eval_loss": 9.0}))
        if self.run.spec.config.get("rewarded"):  # logged while it trains, as GRPO does, and in no evaluation
            logs.insert(0, (self._step - 1, {"reward": float((self.run.number * 5 + chunk * 3) % 7)}))
        return (Finished if is_last else Boundary)(self._step, tuple(logs), metrics)

    def keep_weights(self) -> None:
        if self._unkept:
            self._unkept = False
            self._shared.saving_weights(self.run, self._step, {"steps": self.state})()

    def hurry(self) -> None:
        """A toy takes a whole chunk at once."""

    def snapshot(self, folder: Path) -> Callable[[], None]:
        assert self.state.tolist() == [self._step] * self.state.numel(), "the state is away"
        (folder / "toy.json").write_text(json.dumps({"step": self._step}))
        return self.keep_weights

    def close(self) -> None:
        self.is_closed = True
        if self.holdings is not None:
            self.holdings.forget()


def toy_engine(
    root: Path,
    specs: Sequence[RunSpec] = (),
    callbacks: Sequence[Callback] = (),
    *,
    memory: MemorySpec | None = None,
    checkpoint: CheckpointSpec | None = None,
    objective: Objective | None = None,
    policy: Node | None = None,
    quotas: QuotasSpec | None = None,
    processes: int = 0,
    environments: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    make_slots: Callable[[ExperimentSpec], Slots | None] = lambda spec: None,
    **control: Any,
) -> Engine:
    """Return an engine of toy runs, on so many processes, which may have environments of their own, or in this one."""
    spec = ExperimentSpec(
        name="toys",
        accelerator="cpu",
        objective=objective or Objective(),
        policy=policy,
        memory=memory or MemorySpec(),
        control=ControlSpec(**{"idle_timeout": 0, **control}),
        checkpoint=checkpoint or CheckpointSpec(),
        quotas=quotas or QuotasSpec(),
    )
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()], callbacks=list(callbacks))
    slots = make_slots(spec)
    if processes:
        places = [environments.get(slot, {}) for slot in range(processes)]
        slots = ProcessSlots(spec, places, make_worker=CountingWorker)
    engine = Engine(spec, ExperimentPaths(root), fabric, ToyComposer(), make_session=ToyTrainee, slots=slots)
    for number, run in enumerate(specs):
        engine.add(run, number)
    return engine


@pytest.fixture
def quick_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file count as written to the end at the first look."""
    settle_at_once(monkeypatch)


def settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file count as written to the end at the first look."""
    monkeypatch.setattr("rfflow.engine.steering.Inbox", functools.partial(Inbox, settle=0))


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints be written before anything else happens; an error is heard later all the same."""
    submit = Writer.submit

    def submit_and_wait(writer: Writer, run: int, write: Callable[[], None]) -> None:
        submit(writer, run, write)
        concurrent.futures.wait(writer._writing.values())

    monkeypatch.setattr(Writer, "submit", submit_and_wait)


def put(control: Path, name: str, content: bytes | str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """Put a file of ops (or of anything) in place, written to the end."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, (bytes, str)):
        content = yaml.safe_dump_all(content)
    aside = control / f".{name}.aside"
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.rename(aside, control / name)
    return name


class Dies(Callback):
    """Ends the process, as far as a test can, after so many chunks."""

    def __init__(self, after: int):
        self.left = after

    def on_chunk_start(self, experiment: Experiment) -> None:
        self.left -= 1
        if self.left < 0:
            raise EngineError("killed")
