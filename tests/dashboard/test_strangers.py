"""An experiment that another user has laid out: what its files try to have read or to hold up."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rfflow.control.asking import reply_to
from tests.dashboard.made import make_experiment
from tests.dashboard.test_plugin import Page

SECRET = "sesame"
LINE = json.dumps({"step": 1, "chunk": 1, "time": 1.0, "metrics": {SECRET: 1.0}, "op": "stop", "detail": SECRET})
CONTENTS = {
    "runs/0/run.log": SECRET,
    "runs/0/metrics.jsonl": f"{LINE}\n",
    "runs/0/generations.jsonl": f"{LINE}\n",
    "ops.jsonl": f"{LINE}\n",
    "runs/0/.hydra/config.yaml": f"key: {SECRET}",
    "control/status.json": json.dumps({"runs": [{"number": 0, "state": SECRET}]}),
    "control/1.yaml": f"key: {SECRET}",
    "timeline.json": json.dumps({"chunks": [{"run": SECRET, "chunk": 1, "step": 1, "started": 1, "ended": 2}]}),
    "multirun.yaml": f"objective: {{metric: {SECRET}}}",
}
"""What a user's own files could hold, and where a stranger's links to them would be read."""


def everything(page: Page) -> str:
    """Ask for all that can be read."""
    asked = {"experiment": "one", "run": "0", "runs": "0", "since": "0", "metrics": SECRET}
    return "".join(page.ask(route, **asked).text for route in ("/experiments", "/state", "/run", "/generations"))


@pytest.mark.parametrize("is_ours", [False, True])
@pytest.mark.parametrize("place", CONTENTS)
def test_links_lead_nowhere_out_of_a_strangers_experiment(
    tmp_path: Path, place: str, is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who serves others would read for a stranger what only they may. In one's own experiment links are one's own."""
    monkeypatch.setattr("rfflow.dashboard.reader._is_ours", lambda root: is_ours)
    root, own = make_experiment(tmp_path / "one"), tmp_path / "own"
    own.write_text(CONTENTS[place])
    (root / place).unlink(missing_ok=True)
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).symlink_to(own)
    (root / "experiment.json").touch()
    assert (SECRET in everything(Page(root))) is is_ours


def test_neither_does_a_folder_nor_a_control_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfflow.dashboard.reader._is_ours", lambda root: False)
    root, own = make_experiment(tmp_path / "one"), tmp_path / "own"
    own.mkdir()
    (own / "run.log").write_text(SECRET)
    (own / "1.yaml").write_text(f"key: {SECRET}")
    (root / "runs/0").rename(root / "runs/other")
    (root / "runs/0").symlink_to(own)
    (root / "multirun.yaml").write_text(json.dumps({"control": {"dir": str(own)}}))
    assert SECRET not in everything(Page(root))


def test_a_link_inside_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rfflow.dashboard.reader._is_ours", lambda root: False)
    root = make_experiment(tmp_path / "one")
    (root / "kept.log").write_text(SECRET)
    (root / "runs/0/run.log").symlink_to(root / "kept.log")
    (tmp_path / "by_a_link").symlink_to(root)
    assert SECRET in Page(tmp_path / "by_a_link").ask("/run", experiment="by_a_link", run=0).text


def test_an_answer_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "own").write_text(SECRET)
    (tmp_path / "done").mkdir()
    (tmp_path / "done/1.yaml").touch()
    (tmp_path / "done/1.yaml.outcome").symlink_to(tmp_path / "own")
    reply = reply_to(tmp_path, "1.yaml")
    assert reply is not None and reply.text == "done"


@pytest.mark.parametrize("place", [*CONTENTS, "experiment.json", "control/.lock", ".lock"])
def test_a_pipe_holds_nobody_up(tmp_path: Path, place: str) -> None:
    """Whoever opens one to read waits for somebody who writes."""
    from rfflow.control.ownership import LOCK_NAME

    root = make_experiment(tmp_path / "one")
    path = root / place.replace(".lock", LOCK_NAME)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if place == "control/status.json":
        (root / "experiment.json").touch()
    os.mkfifo(path)
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.append(everything(Page(root))), daemon=True)
    thread.start()
    thread.join(20)
    assert said and said[0].startswith("{")
