"""An experiment that never trains: the events that the engine would send, through a real Fabric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from rfflow.config.spec import DatasetSpec, ExperimentSpec, ModelSpec, Objective, TrainerSpec, TrainSpec
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState

EPOCH = 1_700_000_000.0
PLAN = ChunkPlan(ends=(2, 4, 6, 8), per_epoch=4)


def make_experiment(root: Path, *overrides: tuple[str, ...], objective: Objective | None = None) -> Experiment:
    """Make an experiment with a queued run for each tuple of overrides."""
    spec = ExperimentSpec(name="sft", objective=objective or Objective())
    experiment = Experiment(spec, ExperimentPaths(root), started=EPOCH)
    for parts in overrides:
        add_run(experiment, parts)
    return experiment


def add_run(experiment: Experiment, overrides: tuple[str, ...], parent: int | None = None) -> Run:
    """Add a queued run; its configuration holds what its overrides say, at the top and where ``lr`` is used."""
    config: dict[str, Any] = {
        "lr": 2e-4,
        "trainer": {"args": {"learning_rate": 2e-4}, "output_dir": "?"},
        "peft": {"r": 8, "use_dora": False, "target_modules": ["q_proj"]},
        "model": {"name": "tiny", "revision": None},
    }
    for part in overrides:
        key, _, value = part.lstrip("+").partition("=")
        if key == "lr":
            config["lr"] = config["trainer"]["args"]["learning_rate"] = float(value)
        if key == "peft":
            config["peft"]["r"] = {"lora_small": 4, "lora_large": 64}[value]
    number = len(experiment.runs)
    paths = experiment.paths.run(number)
    config["trainer"]["output_dir"] = str(paths.checkpoints)
    spec = TrainSpec(
        model=ModelSpec("tiny"),
        dataset=DatasetSpec(path="rows.jsonl"),
        trainer=TrainerSpec("trl.SFTTrainer", "trl.SFTConfig"),
        peft=None,
        chunks=4,
        config=config,
    )
    run = Run(number, spec, overrides, paths, parent)
    experiment.runs.append(run)
    return run


def tag(metric: str) -> str:
    """Name a trainer's metric as the engine does for loggers."""
    return f"eval/{metric.removeprefix('eval_')}" if metric.startswith("eval_") else f"train/{metric}"


class Story:
    """Sends events in the engine's order and keeps the runs' own state as the engine does."""

    def __init__(self, experiment: Experiment, *callbacks: Any):
        self.experiment = experiment
        loggers = [callback for callback in callbacks if hasattr(callback, "log_metrics")]
        self.fabric = Fabric(accelerator="cpu", devices=1, callbacks=list(callbacks), loggers=loggers)
        self.now = EPOCH

    def call(self, hook: str, **kwargs: Any) -> None:
        """Send one event."""
        self.fabric.call(hook, experiment=self.experiment, **kwargs)

    def begin(self) -> None:
        """Start, as the engine does once every run is built."""
        for run in self.experiment.runs:
            run.plan = PLAN
        self.call("on_experiment_start")

    def start(self, run: Run) -> None:
        """Let a run train for the first time."""
        run.plan = PLAN
        run.move_to(RunState.RUNNING)
        self.call("on_run_start", run=run)

    def log(self, run: Run, metrics: Mapping[str, float], step: int) -> None:
        """Log as a trainer does."""
        run.metrics.update(metrics)
        run.step = max(run.step, step)
        self.fabric.log_dict({f"{run.name}/{tag(name)}": value for name, value in metrics.items()}, step=step)
        self.call("on_log", run=run, metrics=metrics, step=step)

    def chunk(self, run: Run, metrics: Mapping[str, float] | None = None, seconds: float = 3.0) -> None:
        """Train a run for one chunk, with one log at its end."""
        if run.state is RunState.QUEUED:
            self.start(run)
        chunk = len(run.chunks)
        step = PLAN.ends[chunk]
        self.call("on_chunk_start", run=run, chunk=chunk)
        if metrics:
            self.log(run, metrics, step)
        run.step = step
        values = dict(metrics or {})
        evaluation = values.get("eval_runtime", 0.0)
        result = ChunkResult(
            run.number, chunk, step, values, self.now, self.now + seconds, 0.002, evaluation=evaluation
        )
        self.now += seconds
        run.chunks.append(result)
        self.call("on_chunk_end", run=run, result=result)

    def complete(self, run: Run) -> None:
        """End a run well, its adapter saved."""
        run.paths.final.mkdir(parents=True)
        run.move_to(RunState.COMPLETED)
        self.call("on_run_end", run=run)

    def fail(self, run: Run, error: Exception) -> None:
        """End a run with an error."""
        if run.state is RunState.QUEUED:
            self.start(run)
        run.error = error
        run.move_to(RunState.FAILED)
        self.call("on_run_end", run=run)

    def change(self, run: Run, state: RunState | None = None) -> None:
        """Apply an op: stop, resume or delete a run, or (without a state) make it as a clone."""
        if state is None:
            run.plan = PLAN
        else:
            run.move_to(state)
        self.call("on_run_change", run=run)
        self.call("on_op", run=run, text=f"010-op.yaml: run {run.number} is {run.state.value}")

    def end(self) -> None:
        """End the experiment."""
        self.call("on_experiment_end")

    def tell(self) -> Iterator[str]:
        """Tell a whole experiment, stopping after every turn: losses, NaN, no metrics, a failure, ops."""
        good, diverging, silent, failing = self.experiment.runs[:4]
        self.begin()
        yield "begun"
        for chunk in range(2):
            self.chunk(good, {"loss": 2.0 - chunk, "eval_loss": 2.5 - chunk, "eval_runtime": 0.5, "epoch": chunk / 4})
            self.chunk(diverging, {"loss": math.nan, "eval_loss": math.inf, "grad_norm": 1e30})
            self.chunk(silent)
            if chunk == 0:
                self.chunk(failing, {"loss": 3.0})
                yield "every run has trained"
                self.fail(failing, RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"))
                yield "a run has failed"
        self.change(diverging, RunState.STOPPED)
        self.call("on_wait", control=self.experiment.paths.root / "control", timeout=600.0)
        self.change(diverging, RunState.RUNNING)
        clone = add_run(self.experiment, ("lr=5e-4",), parent=good.number)
        self.change(clone)
        unwanted = add_run(self.experiment, ("lr=9",), parent=good.number)
        self.change(unwanted)
        self.chunk(unwanted, {"loss": 9.0})
        self.change(unwanted, RunState.DELETED)
        for chunk in range(2, 4):
            for run in (good, diverging, silent):
                self.chunk(run, {} if run is silent else {"loss": 1.0 / chunk, "eval_loss": 1.1 / chunk})
            self.chunk(clone, {"loss": 0.4, "accuracy": 0.9})
        yield "a clone has trained"
        for run in (good, diverging, silent):
            self.complete(run)
        for _ in range(2):
            self.chunk(clone, {"loss": 0.3, "accuracy": 0.95})
        self.complete(clone)
        yield "all are through"
        self.end()


FOUR = (("lr=1e-3",), ("lr=1e-1", "peft=lora_large"), ("+trainer.args.max_steps=8",), ())


def tell_whole(experiment: Experiment, *callbacks: Any) -> Story:
    """Tell the whole story."""
    story = Story(experiment, *callbacks)
    for _ in story.tell():
        pass
    return story
