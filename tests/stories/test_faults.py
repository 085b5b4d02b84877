"""What goes wrong around training: disks, memory, numbers. Nothing accepted is lost; the message says what to do."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.loggers import Logger
from transformers import TrainerCallback

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.checkpoints import SEAL, Checkpoints, DamagedCheckpoint, read
from rfflow.config.spec import CheckpointSpec, ExperimentSpec, RunSpec
from rfflow.engine import restoring
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError, EngineError
from rfflow.launch import resume
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.tracking.metrics_log import MetricsLog
from rfflow.tracking.runs_csv import RunsTable
from rfflow.tracking.streams import announce
from rfflow.tracking.table import LiveTable
from rfflow.tracking.timeline import Timeline
from tests.engine.test_restoring import Disk, Killed, differences, no_room, operations, outcome, play, uninterrupted
from tests.support import chance
from tests.support.plain import train_alone
from tests.support.tiny import run_spec
from tests.support.toy import quick_inbox, toy_engine, toy_spec, write_at_once
from tests.worker.training.test_exactness import outcomes

__all__ = ["quick_inbox", "uninterrupted"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def write(checkpoints: Checkpoints, step: int) -> Path:
    draft = checkpoints.begin(step)
    for name in ("weights.bin", "optimizer.pt", "state.json"):
        (draft.folder / name).write_bytes(f"{name} at {step}".encode() * 100)
    return checkpoints.seal(draft, {"chunks": step})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink], ids=["truncated", "a bit flipped", "gone"])
@pytest.mark.parametrize("name", ["weights.bin", "optimizer.pt", "state.json", SEAL])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    write(checkpoints, 10)
    last = write(checkpoints, 20)
    assert (newest := checkpoints.newest()) and newest.step == 20 and newest.progress == {"chunks": 20}
    damage(last / name)
    with pytest.raises(DamagedCheckpoint, match=name):
        read(last)
    with caplog.at_level(logging.WARNING):
        assert (newest := checkpoints.newest()) and newest.step == 10
    assert str(last) in caplog.text and "Going back" in caplog.text


def test_a_draft_is_no_checkpoint(tmp_path: Path) -> None:
    """What a crash has left half written or half removed is neither found nor kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    write(checkpoints, 10)
    checkpoints.begin(20)
    assert checkpoints.steps() == [10]
    checkpoints.clean()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-10"]


@pytest.mark.usefixtures("quick_inbox")
def test_an_experiment_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """Every run's newest checkpoint is damaged, and all of one run's, which begins anew. The end is the same."""
    die_at(tmp_path, operations(tmp_path / "counted") // 2)
    for run in range(3):
        checkpoints = Checkpoints(ExperimentPaths(tmp_path / "x").run(run).checkpoints)
        steps = checkpoints.steps()
        for step in steps if run == 1 else steps[:1]:
            truncate(checkpoints.folder / f"step-{step}" / "toy.json")
    play(tmp_path / "x")
    seen = outcome(tmp_path / "x")
    assert seen["states"] == uninterrupted["states"] and seen["weights"] == uninterrupted["weights"]
    assert seen["logs"] == uninterrupted["logs"]


def die_at(folder: Path, number: int) -> None:
    from tests.engine.test_restoring import locks_die_with_the_process

    with Disk(number), pytest.raises(Killed), locks_die_with_the_process():
        play(folder / "x")


@pytest.mark.parametrize("keep", [(), ("last",), ("best", "final"), ("last", "best")])
def test_what_is_kept_of_a_completed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: tuple[str, ...]
) -> None:
    """While it runs never more than the newest two, and the best; toys have no final adapter of their own."""
    write_at_once(monkeypatch)  # for an instant there is one more
    most = []

    class Look(Callback):
        def on_chunk_start(self, experiment: Experiment, run: Run) -> None:
            most.append(len(Checkpoints(run.paths.checkpoints).steps()))

    engine = toy_engine(tmp_path, [toy_spec(chunks=4)], [Look()], checkpoint=CheckpointSpec(keep=keep))
    engine.run()
    engine.close()
    losses = {chunk.step: chunk.metrics["eval_loss"] for chunk in engine.experiment.run(0).chunks[:-1]}
    best = min(losses, key=lambda step: losses[step])
    expected = {"last": "step-9", "best": f"step-{best}"}
    folders = sorted(path.name for path in (tmp_path / "runs/0/checkpoints").iterdir() if path.is_dir())
    assert folders == sorted({expected[word] for word in keep if word in expected})
    assert max(most) <= 2 + ("best" in keep)


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.usefixtures("quick_inbox")
def test_fewer_checkpoints_lose_nothing(tmp_path: Path, uninterrupted: dict[str, Any], every: int) -> None:
    """Runs go back further, and come to the same end; a stopped run is saved where it stopped."""
    total = operations(tmp_path / "counted")
    for share in (0.4, 0.7):
        root = tmp_path / str(share)
        spec = CheckpointSpec(every=every)
        from tests.engine.test_restoring import locks_die_with_the_process

        with Disk(int(total * share)), pytest.raises(Killed), locks_die_with_the_process():
            play(root, checkpoint=spec)
        play(root, checkpoint=spec)
        assert not differences(uninterrupted, outcome(root))


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_inbox")
def test_a_disk_without_room_stops_training_and_loses_nothing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """One write fails, anywhere. Where that matters the experiment stops and says how to go on, and it goes on."""
    total = operations(tmp_path / "counted")
    draw = random.Random(chance.seed())
    stopped = 0
    for dies_at in sorted(draw.sample(range(1, total), 12)):
        root = tmp_path / str(dies_at)
        try:
            with Disk(dies_at, error=no_room):
                play(root)
        except (EngineError, ConfigError) as error:
            stopped += 1
            assert "No space left" in str(error), error
            if isinstance(error, EngineError):
                assert "resume=" in str(error)
        if experiment_file.read(ExperimentPaths(root).state) is not None:
            play(root)
            seen = outcome(root)
            assert seen["states"] == uninterrupted["states"], f"operation {dies_at}"
            assert seen["weights"] == uninterrupted["weights"] and seen["logs"] == uninterrupted["logs"]
    assert stopped


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 200 kB; what root may do to it is what hardware does to others."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)):
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # an error's trace may hold a file open


def mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def goes_on(root: Path) -> None:
    """Go on with two runs of four chunks, to the end."""
    play(root, plan={})
    state = experiment_file.read(ExperimentPaths(root).state)
    assert state is not None and [run.state for run in state.runs] == [RunState.COMPLETED] * 2
    assert [len(run.chunks) for run in state.runs] == [4, 4]


def test_a_full_file_system(disk: Path) -> None:
    """A real one: training stops, the last good checkpoints are whole, and with room it goes on."""
    filler = disk / "filler"

    class Fill(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            if (run.number, result.chunk) == (1, 1):
                with filler.open("wb") as file, contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * 1024)
                        file.flush()

    root = disk / "experiment"
    engine = toy_engine(root, [toy_spec(chunks=4), toy_spec(chunks=4)], [Fill()], checkpoint=CheckpointSpec())
    with pytest.raises(EngineError, match=r"No space left on device.*resume="):
        engine.run()
    engine.close()
    filler.unlink()
    goes_on(root)


def test_a_file_system_that_becomes_read_only(disk: Path) -> None:
    """As Linux makes of a disk with errors: training stops; nothing begins there, or goes on, until it is mended."""

    class Break(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            if (run.number, result.chunk) == (1, 1):
                engine.slots.worker._drafts.wait_for_all()  # nobody may hold a file open for writing
                engine._lock.release()
                assert mount("-o", "remount,ro", str(disk))

    root, specs = disk / "experiment", [toy_spec(chunks=4), toy_spec(chunks=4)]
    # Without a control directory, whose lock is a file that is held open, too.
    engine = toy_engine(root, specs, [Break()], checkpoint=CheckpointSpec(), enabled=False)
    with pytest.raises(EngineError, match=r"Read-only file system.*resume="):
        engine.run()
    engine.close()
    steps = [Checkpoints(ExperimentPaths(root).run(run).checkpoints).steps() for run in (0, 1)]
    assert steps == [[6, 3], [3]]
    with pytest.raises(ConfigError, match="Read-only file system"):
        toy_engine(disk / "another")
    with pytest.raises(ConfigError, match=r"cannot be used: .*Read-only file system"):
        play(root, plan={})
    engine = toy_engine(root, enabled=False, checkpoint=CheckpointSpec())
    state = experiment_file.read(engine.experiment.paths.state)
    assert state is not None
    with pytest.raises(ConfigError, match=r"cannot be used: .*Read-only file system"):
        engine.go_on(state)
    engine.close()
    assert mount("-o", "remount,rw", str(disk))
    goes_on(root)


def test_a_directory_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not made anew behind the user's back, with a half of an experiment in it."""
    write_at_once(monkeypatch)  # what is written to cannot be removed

    class Remove(Callback):
        def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
            if result.chunk == 1:
                shutil.rmtree(experiment.paths.root)

    engine = toy_engine(tmp_path / "x", [toy_spec(), toy_spec()], [Remove()], checkpoint=CheckpointSpec())
    with pytest.raises(EngineError, match=r"(is gone|No such file)"):
        engine.run()
    engine.close()


class Broken(Callback):
    """Fails in every hook, as a user's own mistake or a disk that is not the experiment's does."""

    def __getattribute__(self, name: str) -> Any:
        def fail(**_: object) -> None:
            raise OSError(errno.EIO, "Input/output error") if name == "on_log" else KeyError(name)

        return fail if name.startswith("on_") else super().__getattribute__(name)


class BrokenLogger(Broken, Logger):
    """Fails in whatever it is given to do."""

    name = version = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        raise RuntimeError("no connection")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def save(self) -> None:
        raise RuntimeError("no connection")


class Gone(io.StringIO):
    """A terminal, or a pipe's end, that is closed after some lines."""

    def __init__(self, error: int):
        super().__init__()
        self.error, self.left = error, 3
        self._null = open(os.devnull, "w")  # noqa: SIM115 - rich puts nothing in its place

    def write(self, text: str, /) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text)

    def isatty(self) -> bool:
        return self.error == errno.EIO

    def fileno(self) -> int:
        return self._null.fileno()


def test_whoever_looks_on_and_fails_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks and loggers that raise whatever they hear: said once for each hook, and at the end how often."""
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [Broken(), RunsTable(), Timeline()])
    engine.fabric._loggers.append(BrokenLogger())
    with caplog.at_level(logging.WARNING):
        engine.run()
        engine.close()
    assert {run.state for run in engine.experiment.runs} == {RunState.COMPLETED}
    assert engine.experiment.paths.timeline_picture.exists()
    assert engine.experiment.paths.runs_table.read_text().count("completed") == 2
    said = [record.getMessage() for record in caplog.records]
    for what in ("Broken failed in on_log, and all else goes on: OSError", "BrokenLogger failed in save, and all"):
        assert sum(what in line for line in said) == 1
    assert "BrokenLogger failed 17 times, in log_metrics, save, finalize" in said
    assert sum("in on_experiment_start, and all" in line for line in said) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE, errno.ENOSPC], ids=["terminal", "pipe", "log file"])
def test_a_table_that_nobody_sees_is_missed_by_nobody(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, what stands behind the table hears everything, and the streams are given back."""
    monkeypatch.setattr(sys, "stdout", Gone(error))
    monkeypatch.setenv("TERM", "xterm")
    before = sys.stdout, sys.stderr
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [LiveTable(), Timeline()])
    engine.run()
    engine.close()
    assert {run.state for run in engine.experiment.runs} == {RunState.COMPLETED}
    assert engine.experiment.paths.timeline_picture.exists()
    assert (sys.stdout, sys.stderr) == before
    with monkeypatch.context() as patch:
        said: list[int] = []
        patch.setattr(os, "write", lambda descriptor, data: said.append(descriptor))
        announce("past the table that is gone")
    assert said == [2]


def test_a_callback_may_mean_to_end_the_experiment(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_chunk_end(self, experiment: Experiment) -> None:
            raise EngineError("It is enough.")

    engine = toy_engine(tmp_path, [toy_spec()], [Enough()])
    with pytest.raises(EngineError, match="It is enough"):
        engine.run()
    engine.close()


def test_a_line_without_room_beside_the_checkpoints_ends_training(tmp_path: Path) -> None:
    """It would be missing for good; a file that cannot be written for another reason costs a warning."""
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], [MetricsLog()], checkpoint=CheckpointSpec())
    first, second = (run.paths.metrics for run in engine.experiment.runs)
    first.mkdir()
    second.symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"Cannot write what run 1 logs: .*No space left.*resume="):
        engine.run()
    engine.close()
    first.rmdir()
    second.unlink()
    goes_on(tmp_path)


def test_a_bug_of_the_engine_is_loud_and_everything_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a checkpoint only every third chunk: what stands at a boundary is saved on the way out."""
    from rfflow.scheduling.scheduler import Scheduler

    turns = iter(range(100))
    following = Scheduler.next

    def buggy(self: Scheduler, *args: Any, **kwargs: Any) -> Any:
        if next(turns) == 5:
            raise KeyError("a bug")
        return following(self, *args, **kwargs)

    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], checkpoint=CheckpointSpec(every=3))
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "next", buggy)
        with pytest.raises(KeyError, match="a bug"):
            engine.run()
    engine.close()
    for run, step in ((0, 9), (1, 6)):
        assert (found := Checkpoints(tmp_path / f"runs/{run}/checkpoints").newest()) and found.step == step


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    play(tmp_path, plan={})
    flip_a_bit(ExperimentPaths(tmp_path).state)
    with pytest.raises(ConfigError, match=r"experiment\.json is damaged.*are not touched"):
        resume.read_experiment_state(tmp_path)


def test_other_rows_are_refused_and_other_versions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play(tmp_path, plan={})
    state = experiment_file.read(ExperimentPaths(tmp_path).state)
    assert state is not None
    state = replace(state, data={"sums.jsonl": "before"}, versions={**state.versions, "torch": "1.0"})
    with pytest.raises(ConfigError, match=r"sums\.jsonl are not those.*now instead of before"):
        state.check_data({"sums.jsonl": "now"})
    state.check_data({"sums.jsonl": "before"})
    with caplog.at_level(logging.WARNING):
        restoring.warn_of_versions(state)
    assert "torch 1.0 ->" in caplog.text and "numpy" not in caplog.text


def test_the_rows_that_an_app_reads_itself_are_known_again(tmp_path: Path) -> None:
    """As those of our own data sets: the same rows read anew, and others under the same name."""
    from datasets import Dataset
    from transformers import Trainer

    def seen(*texts: str) -> dict[str, str]:
        engine = toy_engine(tmp_path)
        trainer = object.__new__(Trainer)
        trainer.train_dataset = Dataset.from_dict({"text": texts})
        engine.slots.worker.shared.note_rows(3, trainer)
        return engine.slots.worker.shared.fingerprints()

    assert seen("a", "b") == seen("a", "b") != seen("a", "c")
    state = experiment_file.SavedExperiment("app", 0.0, data=seen("a", "b"))
    with pytest.raises(ConfigError, match="The rows of the data set of run 3 are not those"):
        state.check_data(seen("a", "c"))


def test_an_edited_configuration_is_refused(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, [toy_spec(lr=1)], checkpoint=CheckpointSpec())
    engine.run()
    engine.close()
    state = experiment_file.read(engine.experiment.paths.state)
    assert state is not None
    other = toy_engine(tmp_path / "other", [toy_spec(lr=2)])
    with pytest.raises(ConfigError, match=r"with lr=1 and would now go on with 2"):
        restoring.check_config(state.runs[0], other.experiment.run(0))
    other.close()


# --- memory and numbers, with real trainers ---------------------------------------------------------------------------


class OutOfMemory(TrainerCallback):
    """Runs out of memory at one step, so many times."""

    left: dict[str, int] = {}

    def __init__(self, step: int, name: str):
        self.step = step
        self.name = name

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step and self.left[self.name]:  # type: ignore[attr-defined]
            self.left[self.name] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.14 GiB.")


class NoNumbers(TrainerCallback):
    """Breaks a weight at one step, as an exploding loss would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, model: Any = None, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def with_callback(spec: RunSpec, target: str, **kwargs: Any) -> RunSpec:
    callback = {"_target_": f"tests.stories.test_faults.{target}", **kwargs}
    return replace(spec, trainer=replace(spec.trainer, callbacks=(callback,)))


def train(root: Path, specs: list[RunSpec], **spec: Any) -> tuple[list[Run], dict[str, Any]]:
    from lightning_fabric import Fabric

    from rfflow.tracking.metrics_log import MetricsLog
    from rfflow.worker.models.safetensors_io import SafetensorsIO

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()], callbacks=[MetricsLog()])
    engine = Engine(ExperimentSpec(name="faults", accelerator="cpu", **spec), ExperimentPaths(root), fabric)
    with outcomes() as ended:
        for number, run in enumerate(specs):
            engine.add(run, number)
        engine.run()
    engine.close()
    return engine.experiment.runs, ended


@pytest.mark.parametrize("step", [3, 9], ids=["in the first chunk", "later"])
def test_a_run_out_of_memory_is_tried_once_more(tiny_model: Path, tiny_data: Path, tmp_path: Path, step: int) -> None:
    """It ends as if nothing had been, and logs nothing twice; the run beside it does not notice."""
    spec = run_spec(tiny_model, tiny_data, chunks=4)
    OutOfMemory.left = {"once": 1}
    runs, ended = train(tmp_path / "x", [with_callback(spec, "OutOfMemory", step=step, name="once"), spec])
    assert [run.state for run in runs] == [RunState.COMPLETED] * 2 and OutOfMemory.left == {"once": 0}
    alone = train_alone(spec, tmp_path / "alone")
    assert not ended["0"].differences(alone) and not ended["1"].differences(alone)
    lines = [run.paths.metrics.read_text().count('"loss"') for run in runs]
    assert lines == [24, 24]


def test_a_run_that_begins_again_twice_is_heard_once(tmp_path: Path) -> None:
    """The second time it may still be repeating itself: memory is short once more, or another worker is lost."""
    heard: list[int] = []

    class Hears(Callback):
        def on_log(self, experiment: Experiment, run: Run, metrics: Mapping[str, float], step: int) -> None:
            heard.append(step)

    engine = toy_engine(tmp_path, [toy_spec()], [Hears()])
    run, boundaries = engine.experiment.run(0), engine._hearing._boundaries
    for last in (5, 2, 6):
        boundaries.publish(run, [(step, {"loss": 1.0}) for step in range(1, last + 1)])
        if last != 6:
            boundaries.again(run, None)
            assert run.step == run.logs == 0
    engine.close()
    assert heard == [1, 2, 3, 4, 5, 6] and run.logs == 6


def test_a_run_out_of_memory_twice_fails_alone(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """With the figures and what to try."""
    spec = run_spec(tiny_model, tiny_data, chunks=4)
    OutOfMemory.left = {"always": 9}
    runs, _ = train(tmp_path, [with_callback(spec, "OutOfMemory", step=9, name="always"), spec])
    assert [run.state for run in runs] == [RunState.FAILED, RunState.COMPLETED] and OutOfMemory.left == {"always": 7}
    assert "Tried to allocate 3.14 GiB" in str(runs[0].error) and "per_device_train_batch_size" in str(runs[0].error)


@pytest.mark.parametrize(
    ("policy", "state", "chunks"),
    [("fail", RunState.FAILED, 1), ("stop", RunState.STOPPED, 2), ("ignore", RunState.COMPLETED, 4)],
)
def test_what_becomes_of_a_run_without_numbers(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, policy: str, state: RunState, chunks: int
) -> None:
    """Its last weights that are numbers stay for clones; the run beside it goes on."""
    spec = run_spec(tiny_model, tiny_data, chunks=4)
    from rfflow.config.spec import ControlSpec

    runs, _ = train(
        tmp_path,
        [with_callback(spec, "NoNumbers", step=9), spec],
        on_nan=policy,
        control=ControlSpec(idle_timeout=0),
    )
    assert [run.state for run in runs] == [state, RunState.COMPLETED] and len(runs[0].chunks) == chunks
    from safetensors.torch import load_file

    assert all(torch.isfinite(tensor).all() for tensor in load_file(runs[0].paths.weights).values())
