"""The process ends soon, and nothing that somebody has written is lost by it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest

from rfflow import __main__ as command


class Forgetful:
    """A callback that never closes its file, and holds itself."""

    def __init__(self, path: Path):
        self.itself, self.file = self, self.open(path)
        self.file.write("the last line")

    def open(self, path: Path) -> IO[str]:
        return path.open("w")


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_callback_has_not_closed_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    monkeypatch.setattr(command, "_main", lambda: Forgetful(tmp_path / "a"))
    gc.disable()
    try:
        command.main()
    finally:
        gc.enable()
    assert (tmp_path / "a").read_text() == "the last line"
    assert gc.get_freeze_count() > 1000, "what libraries hold would be walked through at the end"


def test_what_loads_nothing_loses_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A help text is there at once."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(command, "_main", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("collected"))
    command.main()
