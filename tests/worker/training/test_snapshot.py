"""A run that goes on from a snapshot, in a trainer that knows nothing of the first, ends as if never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file
from transformers import TrainerCallback

from rfflow.config.spec import MemorySpec, RunSpec
from rfflow.runs.events import Boundary, Finished, Progress, WarmStart
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run
from rfflow.worker.models.safetensors_io import SafetensorsIO
from rfflow.worker.shared import Shared
from rfflow.worker.training import snapshot
from rfflow.worker.training.session import TrainingSession
from rfflow.worker.training.warm_start import trained_weights
from tests.support.plain import train_alone
from tests.support.tiny import run_spec
from tests.worker.training.test_exactness import VARIANTS, outcomes

MORE_VARIANTS: dict[str, dict[str, object]] = {
    **VARIANTS,
    "sparse logs in the middle of a window": {"args": {"logging_steps": 5, "gradient_accumulation_steps": 2}},
    "evaluates at the start": {"args": {"eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True}},
    "several evaluation sets": {"args": {"eval_strategy": "steps", "eval_steps": 5, "max_steps": 9}, "dataset": {}},
    "its own saves": {"args": {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1}},
    "its own saves, every weight": {"peft": None, "args": {"optim": "adafactor", "max_steps": 9}},
}


@pytest.fixture
def shared() -> Shared:
    return Shared(Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()]), MemorySpec(), 42)


def begin(spec: RunSpec, root: Path, shared: Shared, **kwargs: object) -> TrainingSession:
    """Build a run up to its first step."""
    root.mkdir(parents=True)
    session = TrainingSession(Run(0, spec, (), RunPaths(root)).card(), shared)
    session.prepare(**kwargs)  # type: ignore[arg-type]
    return session


def snapshots_of(
    session: TrainingSession, folder: Path, *, between: bool = False, ends: int = 100
) -> list[tuple[int, Path]]:
    """Train to the end (or through some boundaries), taking a snapshot at each boundary, or at each step."""
    taken: list[tuple[int, Path]] = []
    if between:
        session.hurry()
    while not isinstance(pause := session.advance(), Finished):
        assert isinstance(pause, (Boundary, Progress))
        if isinstance(pause, Progress) and not pause.can_checkpoint:
            continue
        if isinstance(pause, Boundary):
            ends -= 1
        place = folder / f"{len(taken)}"
        place.mkdir(parents=True)
        session.snapshot(place)()
        taken.append((pause.step, place))
        if not ends:
            break
    return taken


def finish(session: TrainingSession) -> None:
    while not isinstance(session.advance(), Finished):
        pass
    session.close()


def test_every_snapshot_has_the_adapter_that_the_trainer_saves_and_the_weights_for_clones(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared
) -> None:
    """The second too, in which PEFT is not asked any more what the weights are called."""
    session = begin(run_spec(tiny_model, tiny_data, chunks=3), tmp_path / "run", shared)
    for number in range(2):
        while not isinstance(session.advance(), Boundary):
            pass
        folder = tmp_path / f"snapshot-{number}"
        folder.mkdir()
        session.snapshot(folder)()
        trainer = session._coroutine.trainer  # type: ignore[union-attr]
        with session.context.active():
            trainer.save_model(str(tmp_path / "saved"))
        theirs = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        ours = load_file(folder / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        kept, trained = load_file(session.run.paths.weights), trained_weights(trainer.model)
        assert all(torch.equal(kept[f"weights/{name}"], weight) for name, weight in trained.items())
        assert len(kept) == len(trained)
    session.close()


def test_an_adapter_is_saved_as_its_configuration_is_now_and_peft_is_asked_once_for_all(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run of another rank; where the weights are others, it is asked again."""
    asked = []
    ask = snapshot.get_peft_model_state_dict
    monkeypatch.setattr(snapshot, "get_peft_model_state_dict", lambda *a, **k: asked.append(a) or ask(*a, **k))
    others: list[dict[str, object]] = [{}, {"r": 2, "lora_alpha": 3}, {"target_modules": ["k_proj"]}]
    for number, peft in enumerate(others):
        session = begin(run_spec(tiny_model, tiny_data, chunks=3, peft=peft), tmp_path / f"run-{number}", shared)
        trainer = session.coroutine.trainer
        config = trainer.model.peft_config["default"]
        for place, revision in enumerate((None, None, "later")):
            config.revision = revision
            folder = tmp_path / f"snapshot-{number}-{place}"
            folder.mkdir()
            session.snapshot(folder)()
            config.save_pretrained(tmp_path / "config")
            trainer.model.save_pretrained(tmp_path / "saved")
            assert (folder / CONFIG_NAME).read_text() == (tmp_path / "config" / CONFIG_NAME).read_text()
            ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (folder, tmp_path / "saved"))
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        session.close()
    assert len(asked) == 2


QUICK = (
    "batch and accumulation",
    "two epochs, sparse logs",
    "sparse logs in the middle of a window",
    "several evaluation sets",
    "its own saves",
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MORE_VARIANTS]
)
def test_a_resumed_run_equals_the_script_alone(
    name: str, tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared
) -> None:
    """From a boundary in the middle of an epoch and from its last one: weights and the log's history, bit for bit."""
    variant = dict(MORE_VARIANTS[name])
    evaluated = "eval_strategy" in variant.get("args", {})  # type: ignore[operator]
    dataset: dict[str, object] = {"eval_path": str(tiny_data), "max_eval_samples": 8}
    if variant.pop("dataset", None) is not None:
        dataset["eval_path"] = {"one": str(tiny_data), "other": str(tiny_data)}
    spec = run_spec(tiny_model, tiny_data, chunks=3, dataset=dataset if evaluated else {}, **variant)  # type: ignore[arg-type]
    first = begin(spec, tmp_path / "first", shared)
    taken = snapshots_of(first, tmp_path / "snapshots")
    first.close()
    alone = train_alone(spec, tmp_path / "alone") if not evaluated else None
    if alone is None:
        with outcomes() as ended:
            finish(begin(spec, tmp_path / "uninterrupted", shared))
        alone = ended["uninterrupted"]
    for step, folder in {taken[0], taken[min(2, len(taken) - 1)]}:
        with outcomes() as ended:
            finish(begin(spec, tmp_path / f"from {step}", shared, checkpoint=folder))
        assert not ended[f"from {step}"].differences(alone), f"{name}, from step {step}"


def test_every_step_but_the_first_of_an_epoch_can_be_gone_on_from(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared
) -> None:
    """Where Ctrl-C may fall: in the middle of a chunk, with a loss that is yet to be logged, with dropout."""
    args = {"num_train_epochs": 2, "logging_steps": 5, "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine"}
    spec = run_spec(tiny_model, tiny_data, chunks=2, args=args)
    first = begin(spec, tmp_path / "first", shared)
    taken = snapshots_of(first, tmp_path / "snapshots", between=True)
    first.close()
    alone = train_alone(spec, tmp_path / "alone")
    assert [step for step, _ in taken] == list(range(0, 12))
    for step, folder in taken[1::3]:
        with outcomes() as ended:
            finish(begin(spec, tmp_path / f"from {step}", shared, checkpoint=folder))
        assert not ended[f"from {step}"].differences(alone), f"from step {step}"


class Counting(TrainerCallback):
    """A user's callback that ends training by a count of its own."""

    def __init__(self, until: int):
        self.until = until
        self.seen = 0

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        self.seen += 1
        control.should_training_stop = self.seen == self.until  # type: ignore[attr-defined]


def test_callbacks_go_on_counting(tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared) -> None:
    """What a user's callback counts is not begun anew: the resumed run stops where it would have stopped."""
    spec = run_spec(tiny_model, tiny_data, chunks=4)
    callback = {"_target_": "tests.worker.training.test_snapshot.Counting", "until": 20}
    spec = replace(spec, trainer=replace(spec.trainer, callbacks=(callback,)))
    first = begin(spec, tmp_path / "first", shared)
    taken = snapshots_of(first, tmp_path / "snapshots", ends=2)
    first.close()
    second = begin(spec, tmp_path / "second", shared, checkpoint=taken[-1][1])
    while not isinstance(pause := second.advance(), Finished):
        pass
    assert pause.step == 20


def test_a_warm_clone_goes_on_with_its_own_order(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared
) -> None:
    """Its epoch begins in the middle of its parent's; so it does for the rest of it, and in the next."""
    spec = run_spec(tiny_model, tiny_data, chunks=3, args={"num_train_epochs": 2, "per_device_train_batch_size": 8})
    parent = begin(spec, tmp_path / "parent", shared)
    snapshots_of(parent, tmp_path / "unused", ends=1)
    start = WarmStart(0, parent.run.paths.weights, 1)
    parent.close()
    with outcomes() as ended:
        clone = begin(spec, tmp_path / "clone", shared, warm_start=start)
        taken = snapshots_of(clone, tmp_path / "snapshots")
        for step, folder in taken:
            name = f"from {step}"
            finish(begin(spec, tmp_path / name, shared, warm_start=start, checkpoint=folder))
            assert not ended[name].differences(ended["clone"]), name
    assert len(taken) == 5


def test_a_snapshot_does_not_move_the_run(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, shared: Shared, make_spec: Callable[..., RunSpec]
) -> None:
    spec = make_spec(chunks=6)
    with outcomes() as ended:
        session = begin(spec, tmp_path / "watched", shared)
        snapshots_of(session, tmp_path / "snapshots", between=True)
    assert not ended["watched"].differences(train_alone(spec, tmp_path / "alone"))


@pytest.fixture
def make_spec(tiny_model: Path, tiny_data: Path) -> Callable[..., RunSpec]:
    return lambda **kwargs: run_spec(tiny_model, tiny_data, **kwargs)
