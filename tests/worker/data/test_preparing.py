"""Rows become tokens once: whatever runs differ in that has no part in it, and however many processes want them."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
from datasets.fingerprint import Hasher

from rfflow.worker.data import preparing
from rfflow.worker.data.preparing import ReadArguments, alone_with, prepared_once


class Arguments:
    """As a trainer's."""

    def __init__(self, max_length: int, learning_rate: float):
        self.max_length = max_length
        self.learning_rate = learning_rate


def test_a_function_is_known_by_the_arguments_that_were_read() -> None:
    def fingerprint(arguments: Arguments) -> str:
        args = ReadArguments({}, arguments)
        assert args.max_length == arguments.max_length
        return str(Hasher.hash(lambda row: len(row) < args.max_length))

    one = fingerprint(Arguments(8, 1e-3))
    assert fingerprint(Arguments(8, 1e-4)) == one
    assert fingerprint(Arguments(9, 1e-3)) != one
    with pytest.raises(AttributeError):
        _ = ReadArguments({}, Arguments(8, 1e-3)).max_lenght


def _work(folder: str, begin: object) -> None:
    begin.wait()  # type: ignore[attr-defined]
    with alone_with("rows"):
        busy = Path(folder) / "busy"
        busy.mkdir()  # which fails if another is there
        busy.rmdir()
        with (Path(folder) / "done").open("a") as file:
            file.write("x")


def test_one_process_at_a_time_prepares_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that died holds up nobody."""
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path))
    fork = multiprocessing.get_context("fork")
    begin = fork.Event()
    workers = [fork.Process(target=_work, args=(str(tmp_path), begin)) for _ in range(3)]
    for worker in workers:
        worker.start()
    begin.set()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "done").read_text() == "xxx"


def test_who_waits_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(preparing, "_SOON", 0.01)
    held, order = threading.Event(), []

    def wait() -> None:
        held.wait()
        with alone_with("rows"):
            order.append("second")

    waiting = threading.Thread(target=wait)
    waiting.start()
    with caplog.at_level("INFO"), alone_with("rows"):
        held.set()
        while "waited for" not in caplog.text:  # the thread's own words
            threading.Event().wait(0.005)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]


def test_where_nothing_can_be_locked_the_rows_are_prepared_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with alone_with("rows"):
        pass


def test_a_trainer_that_prepares_nothing_is_left_alone() -> None:
    with prepared_once(object):  # type: ignore[arg-type]
        pass
