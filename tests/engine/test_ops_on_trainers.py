"""Each op on real trainers: what a run does after it is what it would have done without."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rfflow.config.spec import ControlSpec, ExperimentSpec, MemorySpec, RunSpec
from rfflow.control.asking import drop
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from tests.support.plain import Outcome, train_alone
from tests.support.tiny import make_data, make_model, run_spec
from tests.worker.training.test_exactness import outcomes

Op = Mapping[str, Any]


class Composer:
    """Composes clones as Hydra would, for the few keys that these tests change."""

    def compose_clone(
        self, parent: Run, overrides: tuple[str, ...], number: int, directory: Path
    ) -> tuple[RunSpec, tuple[str, ...], Any]:
        spec = parent.spec
        for override in overrides:
            key, _, text = override.partition("=")
            value = yaml.safe_load(text)
            section, _, name = key.rpartition(".")
            if section == "trainer.args":
                spec = replace(spec, trainer=replace(spec.trainer, args={**spec.trainer.args, name: value}))
            elif section == "peft":
                spec = replace(spec, peft={**(spec.peft or {}), name: value})
            elif section in ("model", "dataset"):
                spec = replace(spec, **{section: replace(getattr(spec, section), **{name: value})})
            elif key == "chunks":
                spec = replace(spec, chunks=value)
            else:
                raise ConfigError(f"Could not override {key!r}.")
        return spec, overrides, None


class Person(Callback):
    """Drops op files when a run has ended a chunk, as somebody who watches the table would."""

    def __init__(self, control: Path, when: Mapping[tuple[int, int], Sequence[Op] | Op]):
        self.control = control
        self.when = dict(when)
        self.waits = 0

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        self.act(run.number, result.chunk)

    def on_wait(self, experiment: Experiment, control: Path, timeout: float | None) -> None:
        """The waits count as chunks of run -1."""
        self.act(-1, self.waits)
        self.waits += 1

    def act(self, run: int, chunk: int) -> None:
        ops = self.when.pop((run, chunk), ())
        for op in [ops] if isinstance(ops, Mapping) else ops:
            drop(self.control, dict(op))


def play(
    root: Path,
    specs: Sequence[RunSpec],
    when: Mapping[tuple[int, int], Sequence[Op] | Op],
    *,
    memory: MemorySpec | None = None,
    watch: Sequence[Callback] = (),
) -> tuple[Experiment, dict[str, Outcome]]:
    """Run an experiment in which ops come at given moments."""
    from lightning_fabric import Fabric

    from rfflow.tracking.runs_csv import RunsTable
    from rfflow.worker.models.safetensors_io import SafetensorsIO

    paths = ExperimentPaths(root)
    spec = ExperimentSpec(
        name="test", accelerator="cpu", control=ControlSpec(idle_timeout=0), memory=memory or MemorySpec()
    )
    person = Person(paths.control, when)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()], callbacks=[RunsTable(), *watch, person])
    engine = Engine(spec, paths, fabric, composer=Composer())
    with outcomes() as collected:
        for number, run in enumerate(specs):
            engine.add(run, number)
        engine.run()
    engine.close()
    assert not person.when, f"never came to pass: {person.when}"
    return engine.experiment, collected


def refusal(root: Path) -> str:
    """Return the reason beside the only refused file."""
    (error,) = (root / "control" / "rejected").glob("*.error")
    return error.read_text()


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> Callable[..., RunSpec]:
    """Make a run on the tiny model: 24 steps in 4 chunks."""
    return lambda **kwargs: run_spec(tiny_model, tiny_data, **kwargs)


@pytest.mark.parametrize("host_limit", [None, 0], ids=["from the host", "from disk"])
@pytest.mark.parametrize("variant", [{}, {"peft": None}], ids=["adapter", "every weight"])
def test_a_stopped_run_resumes_as_if_it_had_never_stopped(
    spec: Callable[..., RunSpec], tmp_path: Path, host_limit: int | None, variant: dict[str, Any]
) -> None:
    """Bit for bit, wherever its tensors were meanwhile."""
    stopped = spec(args={"learning_rate": 1e-3, "lr_scheduler_type": "cosine"}, **variant)
    on_disk = []

    class Look(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            on_disk.append((experiment.paths.run(0).root / ".suspended.safetensors").exists())

    experiment, together = play(
        tmp_path / "experiment",
        [stopped, spec()],
        {(0, 1): {"op": "stop", "run": 0}, (1, 3): {"op": "resume", "run": 0}},
        memory=MemorySpec(host_limit=host_limit),
        watch=[Look()],
    )
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED, RunState.COMPLETED]
    order = sorted((chunk.started, chunk.run, chunk.chunk) for run in experiment.runs for chunk in run.chunks)
    assert [(run, chunk) for _, run, chunk in order][3:] == [(1, 1), (1, 2), (1, 3), (0, 2), (0, 3)]
    assert any(on_disk) == (host_limit == 0)
    assert not together["0"].differences(train_alone(stopped, tmp_path / "alone"))
    assert not (experiment.paths.run(0).root / ".suspended.safetensors").exists()


def test_a_clone_trains_as_its_own_configuration_would_alone(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """A clone without warm start, other rank, rate and batch size, from a completed parent; and a sweep of two."""
    overrides = ["peft.r=8", "trainer.args.learning_rate=1e-3,2e-3", "trainer.args.per_device_train_batch_size=3"]
    experiment, together = play(
        tmp_path / "experiment", [spec()], {(0, 3): {"op": "clone", "run": 0, "overrides": overrides}}
    )
    assert [run.parent for run in experiment.runs] == [None, 0, 0]
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED] * 3
    for number, rate in ((1, 1e-3), (2, 2e-3)):
        alone = spec(peft={"r": 8}, args={"learning_rate": rate, "per_device_train_batch_size": 3})
        assert not together[str(number)].differences(train_alone(alone, tmp_path / "alone" / str(number)))
    assert [entry["op"] for entry in map(json.loads, experiment.paths.ops.read_text().splitlines())] == ["clone"] * 2


def test_a_clone_may_have_another_base_model_and_other_rows(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """From a stopped parent; the other model is loaded beside the first."""
    model, data = make_model(tmp_path / "other", layers=1, seed=1), make_data(tmp_path / "other.jsonl", rows=40)
    overrides = [f"model.name={model}", f"dataset.path={data}", "chunks=2"]
    ops = [{"op": "stop", "run": 0}, {"op": "clone", "run": 0, "overrides": overrides}]
    experiment, together = play(tmp_path / "experiment", [spec()], {(0, 0): ops})
    assert [run.state for run in experiment.runs] == [RunState.STOPPED, RunState.COMPLETED]
    alone = run_spec(model, data, chunks=2)
    assert not together["1"].differences(train_alone(alone, tmp_path / "alone"))


def test_a_warm_start_takes_the_weights_and_nothing_else(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """The parent's weights, but the clone's own learning rate and schedule, checked step by step from its step 0."""
    rate, warmup, steps = 4e-3, 6, 24
    overrides = [f"trainer.args.learning_rate={rate}", f"trainer.args.warmup_steps={warmup}"]
    experiment, together = play(
        tmp_path,
        [spec(args={"learning_rate": 1e-3}, peft={"lora_dropout": 0.0})],
        {(0, 1): {"op": "clone", "run": 0, "overrides": overrides, "warm_start": True}},
    )
    clone = experiment.run(1)
    assert clone.first_chunk == 2 and clone.state is RunState.COMPLETED
    rates = [entry["learning_rate"] for entry in together["1"].history if "learning_rate" in entry]
    expected = [rate * min(step / warmup, (steps - step) / (steps - warmup)) for step in range(steps)]
    assert rates == pytest.approx(expected)
    losses = {run: [e["loss"] for e in together[run].history if "loss" in e] for run in ("0", "1")}
    # Its first step is on the batch of the parent's thirteenth, from the weights that the parent had then.
    assert losses["1"][0] == losses["0"][12] != losses["0"][0]
    # It goes round: its thirteenth is on the batch of the parent's first.
    assert losses["1"][12] == pytest.approx(losses["0"][0], rel=0.1) and len(losses["1"]) == steps


def test_a_warm_start_needs_the_same_architecture(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """Refused with the first difference, and nothing is left of the clone."""
    op = {"op": "clone", "run": 0, "overrides": ["peft.r=16"], "warm_start": True}
    experiment, _ = play(tmp_path, [spec()], {(0, 0): op})
    assert len(experiment.runs) == 1 and experiment.runs[0].state is RunState.COMPLETED
    said = refusal(tmp_path)
    assert "lora_A" in said and "is 4x64 in run 0 and 16x64 in the clone" in said
    assert not experiment.paths.run(1).root.exists()


def test_a_clone_that_cannot_fit_is_refused_with_the_figures(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """Before its adapter is made, which would take the whole process along; the parent trains on."""
    op = {"op": "clone", "run": 0, "overrides": ["peft.r=1000000000"]}
    experiment, _ = play(tmp_path, [spec()], {(0, 0): op})
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED]
    said = refusal(tmp_path)
    assert "Training its adapter needs" in said and "GB are free" in said and "A smaller peft.r" in said
    assert not experiment.paths.run(1).root.exists()


def test_a_clone_that_would_write_to_its_parents_directory_is_refused(
    spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """It inherits what its parent was given; the parent goes on, and its checkpoints stay."""
    place = tmp_path / "one for all"
    args = {"output_dir": str(place), "save_strategy": "steps", "save_steps": 12}
    op = {"op": "clone", "run": 0, "overrides": ["peft.r=2"]}
    experiment, _ = play(tmp_path / "experiment", [spec(args=args)], {(0, 0): op})
    assert "Runs 0 and 1 both write to trainer.args.output_dir" in refusal(tmp_path / "experiment")
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED]
    assert sorted(path.name for path in place.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-24"]


def test_a_deleted_run_leaves_the_device_and_keeps_its_checkpoints(
    spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    ops = [{"op": "delete", "run": 0}, {"op": "resume", "run": 0}]
    experiment, _ = play(tmp_path, [spec(), spec()], {(1, 0): ops})
    assert [run.state for run in experiment.runs] == [RunState.DELETED, RunState.COMPLETED]
    assert experiment.runs[0].paths.weights.is_file()
    with open(experiment.paths.runs_table) as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["deleted", "completed"]
    assert "Cannot resume run 0: it is deleted" in refusal(tmp_path)


def test_a_failed_run_can_be_cloned_warm_from_its_last_boundary(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    callback = {"_target_": "tests.worker.training.test_exactness.FailAt", "step": 9}
    bad = spec()
    bad = replace(bad, trainer=replace(bad.trainer, callbacks=(callback,)))
    op = {"op": "clone", "run": 0, "overrides": ["trainer.args.max_steps=4"], "warm_start": True}
    experiment, _ = play(tmp_path, [bad, spec()], {(1, 2): op})
    assert [run.state for run in experiment.runs] == [RunState.FAILED, RunState.COMPLETED, RunState.COMPLETED]
    assert experiment.run(2).first_chunk == 1


def test_a_file_of_several_ops_is_applied_whole_or_not_at_all(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """The second op is a typo in an override: the stop before it is not applied either, nor its clone kept."""

    class Look(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            if (run.number, result.chunk) == (0, 0):
                documents = [
                    {"op": "clone", "run": 0, "overrides": ["peft.r=2"]},
                    {"op": "stop", "run": 1},
                    {"op": "clone", "run": 1, "overrides": ["trainer.args.learning_rat=1"]},
                ]
                aside = experiment.paths.control / ".several"
                aside.write_text(yaml.safe_dump_all(documents))
                import os

                os.utime(aside, (1, 1))
                os.rename(aside, experiment.paths.control / "several.yaml")

    experiment, _ = play(tmp_path, [spec(), spec()], {}, watch=[Look()])
    assert [run.state for run in experiment.runs] == [RunState.COMPLETED, RunState.COMPLETED]
    said = refusal(tmp_path)
    assert "Op 3 of 3" in said and "learning_rat" in said and "'learning_rate'" in said
    assert "Nothing of the file was applied" in said and not experiment.paths.run(2).root.exists()


def test_the_engine_waits_while_every_live_run_is_stopped(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    """All stopped; the person resumes one of them on the first wait; the other is left when the patience is over."""
    when = {(1, 0): {"op": "stop", "run": "all"}, (-1, 0): {"op": "resume", "run": 1}}
    spec_ = ExperimentSpec(name="test", accelerator="cpu", control=ControlSpec(idle_timeout=1.0))
    from lightning_fabric import Fabric

    from rfflow.worker.models.safetensors_io import SafetensorsIO

    paths = ExperimentPaths(tmp_path)
    person = Person(paths.control, when)
    engine = Engine(
        spec_, paths, Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()], callbacks=[person]), Composer()
    )
    for number in range(2):
        engine.add(spec(), number)
    engine.run()
    engine.close()
    assert [run.state for run in engine.experiment.runs] == [RunState.STOPPED, RunState.COMPLETED]
    assert person.waits == 2
    status = yaml.safe_load((paths.control / "status.yaml").read_text())
    assert [run["state"] for run in status["runs"]] == ["stopped", "completed"]
