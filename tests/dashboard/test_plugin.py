"""What the tab in TensorBoard is told, and what it is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client

from rfflow.control.ownership import lock_of_experiment
from rfflow.dashboard.plugin import RfflowPlugin
from rfflow.dashboard.reader import find
from tests.dashboard.made import log, make_experiment


class Page:
    """Asks as the page does."""

    def __init__(self, logdir: Path, **flags: Any):
        self._apps = RfflowPlugin(SimpleNamespace(logdir=str(logdir), flags=SimpleNamespace(**flags))).get_plugin_apps()

    def ask(self, route: str, host: str = "localhost:6006", method: str = "GET", **query: Any) -> Any:
        return Client(self._apps[route]).open(
            f"/data/plugin/rfflow{route}", base_url=f"http://{host}", method=method, query_string=query
        )

    def file(self, name: str) -> Any:
        return Client(self._apps["/static/*"]).get(f"/data/plugin/rfflow/static/{name}")


@pytest.mark.parametrize("logdir", ["sft/one", "sft/one/tb", "sft/one/tb/0 lr=1", "sft", "."])
def test_an_experiment_is_found_from_its_curves_up(tmp_path: Path, logdir: str) -> None:
    root = make_experiment(tmp_path / "sft" / "one")
    (root / "tb" / "0 lr=1").mkdir(parents=True)
    assert [*find(str(tmp_path / logdir)).values()] == [root]


def test_every_experiment_below_is_listed_and_those_that_run_come_first(tmp_path: Path) -> None:
    roots = [make_experiment(tmp_path / "sft" / name) for name in ("one", "two")]
    lock = lock_of_experiment(roots[0])
    lock.acquire()
    try:
        listed = Page(tmp_path).ask("/experiments").json["experiments"]
    finally:
        lock.release()
    assert listed == [{"name": "sft/one", "alive": True}, {"name": "sft/two", "alive": False}]


def test_a_second_look_says_only_what_is_new(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    page = Page(root)
    log(root, 0, 1, loss=2.0)
    log(root, 1, 1, loss=3.0)
    first = page.ask("/points", experiment="one").json
    assert first["points"] == [[0, 1, 1, 1.0, {"loss": 2.0}], [1, 1, 1, 1.0, {"loss": 3.0}]]
    log(root, 0, 2, loss=1.0, bad="NaN")
    with (root / "runs/1/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "metr')  # its other half comes later
    second = page.ask("/points", experiment="one", since=first["cursor"]).json
    assert second["points"] == [[0, 2, 1, 2.0, {"loss": 1.0}]]


def test_the_state_is_sent_again_only_when_it_has_changed(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    page = Page(root)
    first = page.ask("/state", experiment="one").json
    assert [run["state"] for run in first["runs"]] == ["running", "queued"]
    assert first["timeline"] == [[0, 1, 10.0, 12.0, 0]]
    assert page.ask("/state", experiment="one", tag=first["tag"]).json == {"tag": first["tag"], "same": True}
    (root / "ops.jsonl").write_text(json.dumps({"op": "clone", "detail": "hub_token=hf_1234567 was given"}) + "\n")
    again = page.ask("/state", experiment="one", tag=first["tag"]).json
    assert again["ops"][0]["detail"] == "hub_token=(hidden) was given"


def test_the_end_of_a_log_is_read_without_secrets(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    (root / "runs/0/run.log").write_text("x" * 30_000 + "\nhf_token: abcdefgh\nlast line")
    said = Page(root).ask("/log", experiment="one", run=0).json["log"]
    assert len(said) <= 20_000 and said.endswith("hf_token: (hidden)\nlast line")


@pytest.mark.parametrize("query", [{"experiment": "../one"}, {"experiment": "one", "run": "7"}, {"experiment": "one"}])
def test_what_is_not_there_is_refused(tmp_path: Path, query: dict[str, str]) -> None:
    answer = Page(make_experiment(tmp_path / "one")).ask("/log", **query)
    assert answer.status_code == 400 and answer.json["error"]


def test_another_site_whose_name_leads_here_reads_nothing(tmp_path: Path) -> None:
    """DNS rebinding; a forged port or a dot at the end makes no difference."""
    root = make_experiment(tmp_path / "one")
    for host in ("evil.test:6006", "localhost.evil.test", "127.0.0.1.evil.test:80"):
        answer = Page(root).ask("/state", host=host, experiment="one")
        assert answer.status_code == 403 and "runs" not in answer.json
    assert Page(root, bind_all=True).ask("/state", host="box:6006", experiment="one").status_code == 200
    assert Page(root).ask("/state", host="[::1]:6006", experiment="one").status_code == 200


def test_nothing_can_be_written(tmp_path: Path) -> None:
    page = Page(make_experiment(tmp_path / "one"))
    for route in ("/experiments", "/state", "/points", "/log"):
        assert page.ask(route, method="POST", experiment="one").status_code == 405


def test_the_page_is_served_and_nothing_beside_it(tmp_path: Path) -> None:
    page = Page(make_experiment(tmp_path / "one"))
    assert page.file("app.js").content_type.startswith("text/javascript")
    for name in ("../plugin.py", "%2e%2e/plugin.py", "..%2fplugin.py", "", "vendor"):
        assert page.file(name).status_code == 404


def test_the_page_asks_no_other_host() -> None:
    """TensorBoard's content security policy forbids it."""
    from rfflow.dashboard.plugin import STATIC

    for path in STATIC.glob("*.*"):
        assert "http://" not in path.read_text() and "https://" not in path.read_text()
    assert {path.stem for path in (STATIC / "vendor").glob("*.LICENSE")} == {"htm", "preact", "uplot"}
