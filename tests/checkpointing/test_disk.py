"""A disk that is full is nobody's fault, however a library puts it; and what answers to it does not die of it again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from safetensors.torch import save_file

from rfflow.checkpointing.checkpoints import Checkpoints
from rfflow.checkpointing.disk import is_disk_trouble
from rfflow.config.spec import CheckpointSpec
from rfflow.control.ownership import Lock
from rfflow.errors import EngineError
from rfflow.launch.sweep import Sweep
from rfflow.runs.run import RunState
from tests.stories.test_faults import disk, goes_on
from tests.support.toy import STEPS_A_CHUNK, ToyTrainee, toy_engine, toy_spec

__all__ = ["disk"]

TENSORS = {"weight": torch.zeros(400, 400)}
TORN = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: c10::ThrowEnforceNotMet"


def to_an_open_file(folder: Path) -> None:
    with (folder / "x").open("wb") as file:
        torch.save(TENSORS, file)


def by_map(folder: Path) -> None:
    rows = Dataset.from_dict({"text": ["words " * 200] * 1000})
    rows.map(lambda row: {"more": row["text"] + "!"}, cache_file_name=str(folder / "x.arrow"), writer_batch_size=50)


def by_reading(folder: Path) -> None:
    file = folder.parent / "rows.jsonl"
    file.write_text(f'{{"text": "{"words " * 200}"}}\n' * 1000)
    load_dataset("json", data_files=str(file), cache_dir=str(folder))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "torch": lambda folder: torch.save(TENSORS, folder / "x"),
    "torch, to an open file": to_an_open_file,
    "torch, as it was": lambda folder: torch.save(TENSORS, folder / "x", _use_new_zipfile_serialization=False),
    "safetensors": lambda folder: save_file(TENSORS, folder / "x"),
    "numpy": lambda folder: np.save(folder / "x.npy", TENSORS["weight"].numpy()),
    "text": lambda folder: (folder / "x").write_text("x" * 1_000_000),
    "rows that are mapped": by_map,
    "rows that are read": by_reading,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_library_is_understood(disk: Path, writer: str) -> None:
    """On a real file system of 200 kB, each in its own words."""
    with pytest.raises(Exception) as error:
        WRITERS[writer](disk)
    assert is_disk_trouble(error.value), error.value


def from_its_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def behind(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    ("error", "is_disks"),
    [
        *[(OSError(number, os.strerror(number)), True) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)],
        *[(OSError(number, os.strerror(number)), True) for number in (errno.EROFS, errno.EIO, errno.ESTALE)],
        (RuntimeError(TORN), True),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), True),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), True),
        (from_its_cause(DatasetGenerationError("An error occurred"), OSError(errno.ENOSPC, "No space left")), True),
        (behind(RuntimeError("iostream error"), OSError(errno.EFBIG, "File too large")), True),
        (behind(RuntimeError("the run's own"), OSError(errno.EIO, "Input/output error")), False),
        (behind(KeyError("reward"), FileNotFoundError(errno.ENOENT, "No such file or directory")), False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), False),
        (OSError("Can't load tokenizer"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_is_the_disks_or_it_is_not(error: Exception, is_disks: bool) -> None:
    assert is_disk_trouble(error) == is_disks


def test_a_run_is_not_at_fault_where_torch_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``save_steps`` of its own, say: no run has failed, and with room all go on."""
    advance = ToyTrainee.advance

    def saving(self: ToyTrainee) -> Any:
        if (self.run.number, self._step) == (1, 2 * STEPS_A_CHUNK):
            torch.save(TENSORS, "/dev/full")
        return advance(self)

    engine = toy_engine(tmp_path, [toy_spec(chunks=4)] * 2, checkpoint=CheckpointSpec())
    with monkeypatch.context() as patch:
        patch.setattr(ToyTrainee, "advance", saving)
        with pytest.raises(EngineError, match=r"what run 1 saves.*unexpected pos.* it is full\).*resume="):
            engine.run()
    engine.close()
    assert [run.state for run in engine.experiment.runs] == [RunState.RUNNING] * 2
    goes_on(tmp_path)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_closing_does_not_die_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended the experiment is what is heard; every run is closed, and nothing stays locked."""
    closed, released = [], []

    def close(self: ToyTrainee) -> None:
        closed.append(self.run.number)
        raise full()

    def advance(self: ToyTrainee) -> Any:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    release = Lock.release
    monkeypatch.setattr(ToyTrainee, "close", close)
    monkeypatch.setattr(ToyTrainee, "advance", advance)
    monkeypatch.setattr(Lock, "release", lambda lock: (released.append(lock), release(lock))[1])
    engine = toy_engine(tmp_path, [toy_spec()] * 3, checkpoint=CheckpointSpec())
    with pytest.raises(EngineError, match="Disk quota exceeded"):
        engine.run()
    engine.close()
    assert sorted(closed) == [0, 1, 2] and released


def test_a_search_whose_study_finds_no_room_is_not_what_is_heard() -> None:
    class Full:
        def settle(self, runs: Any) -> None:
            raise full()

    sweep = Sweep.__new__(Sweep)
    sweep.refill = Full()  # type: ignore[assignment]
    sweep._engine = type("Engine", (), {"experiment": type("Experiment", (), {"runs": []})})()  # type: ignore[assignment]
    sweep._paths = type("Paths", (), {"root": Path("x")})()  # type: ignore[assignment]
    sweep._settle(is_news=False)
    with pytest.raises(EngineError, match=r"the study of the search.*No space left.*resume="):
        sweep._settle(is_news=True)


def test_a_run_that_joins_is_not_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a search asks for while others train: it will be asked for again."""
    engine = toy_engine(tmp_path, [toy_spec()], checkpoint=CheckpointSpec())
    late = engine.add(toy_spec(), 1)

    def prepare(self: ToyTrainee, *_: Any, **__: Any) -> Any:
        raise full()

    monkeypatch.setattr(ToyTrainee, "prepare", prepare)
    with pytest.raises(EngineError, match=r"what run 1 needs.*No space left"):
        engine.join(late)
    engine.close()
    assert late.state is RunState.QUEUED


def test_a_run_that_joins_does_not_fail_of_what_is_heard_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = toy_engine(tmp_path, [toy_spec()], checkpoint=CheckpointSpec())
    late = engine.add(toy_spec(), 1)
    monkeypatch.setattr(engine._placement.builds, "ready", lambda *_: (_ for _ in ()).throw(EngineError("run 0's")))
    with pytest.raises(EngineError, match="run 0's"):
        engine.join(late)
    engine.close()
    assert late.state is RunState.QUEUED


def test_a_run_that_joins_and_cannot_be_built_fails_alone(tmp_path: Path) -> None:
    """Whatever a library says of it: the others must not end by it."""
    engine = toy_engine(tmp_path, [toy_spec()])
    late = engine.add(toy_spec(breaks="unexpected"), 1)
    engine.join(late)
    engine.run()
    engine.close()
    assert [run.state for run in engine.experiment.runs] == [RunState.COMPLETED, RunState.FAILED]


def test_a_checkpoint_that_found_no_room_leaves_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written of it is removed at once: the disk needs the room."""

    def snapshot(self: ToyTrainee, folder: Path) -> Any:
        (folder / "half").write_text("x")
        raise full()

    monkeypatch.setattr(ToyTrainee, "snapshot", snapshot)
    engine = toy_engine(tmp_path, [toy_spec()], checkpoint=CheckpointSpec())
    with pytest.raises(EngineError, match="the checkpoint of run 0"):
        engine.run()
    engine.close()
    checkpoints = Checkpoints(engine.experiment.run(0).paths.checkpoints)
    assert [path.name for path in checkpoints.folder.iterdir()] == []
