"""What the tab in TensorBoard is told, and what it is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client

from rfflow.control.ownership import lock_of_experiment
from rfflow.control.status import RunStatus, Status, StatusFile
from rfflow.dashboard.finding import find
from rfflow.dashboard.plugin import RfflowPlugin
from tests.dashboard.made import held, log, make_experiment


class Page:
    """Asks as the page does, from this machine."""

    def __init__(self, logdir: Path, **flags: Any):
        self.logdir = logdir
        self.plugin = RfflowPlugin(SimpleNamespace(logdir=str(logdir), flags=SimpleNamespace(**flags)))
        self._apps = self.plugin.get_plugin_apps()

    def ask(
        self, route: str, host: str = "localhost:6006", method: str = "GET", environ: Any = None, **query: Any
    ) -> Any:
        return Client(self._apps[route]).open(
            f"/data/plugin/rfflow{route}",
            base_url=f"http://{host}",
            method=method,
            query_string=query,
            environ_overrides={"REMOTE_ADDR": "127.0.0.1", **(environ or {})},
        )

    def post(
        self,
        route: str,
        body: Any,
        host: str = "localhost:6006",
        *,
        token: str | None = None,
        content_type: str = "application/json",
        environ: Any = None,
    ) -> Any:
        return Client(self._apps[route]).post(
            f"/data/plugin/rfflow{route}",
            base_url=f"http://{host}",
            data=json.dumps(body),
            content_type=content_type,
            headers={"X-Rfflow": self.plugin._guard.token if token is None else token},
            environ_overrides={"REMOTE_ADDR": "127.0.0.1", "HTTP_ORIGIN": f"http://{host}", **(environ or {})},
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
    asked = {"experiment": "one", "metrics": "loss,eval_loss"}
    first = page.ask("/state", since=0, **asked).json
    assert first["points"] == [[0, 1, 1, 1.0, 2.0, None], [1, 1, 1, 1.0, 3.0, None]]
    log(root, 0, 2, loss=1.0, bad="NaN")
    log(root, 0, 2, learning_rate=1.0)
    with (root / "runs/1/metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "metr')  # its other half comes later
    second = page.ask("/state", since=first["cursor"], tag=first["tag"], **asked).json
    assert second["points"] == [[0, 2, 1, 2.0, 1.0, None]] and second["same"]
    assert page.ask("/state", **asked).json["runs"][0]["best"] == {"loss": 1.0, "learning_rate": 1.0}


def test_an_evaluations_points_come_with_their_limits(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    page = Page(root)
    log(root, 0, 1, eval_f1=0.5, eval_f1_low=0.25, eval_f1_high=1.0)
    log(root, 0, 2, eval_f1=0.5)
    said = page.ask("/state", experiment="one", since=0, metrics="eval_f1,,eval_f1_low,eval_f1_high").json
    assert said["points"] == [[0, 1, 1, 1.0, 0.5, None, 0.25, 1.0], [0, 2, 1, 2.0, 0.5, None, None, None]]


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


def test_ops_and_chunks_that_are_known_are_not_sent_again(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    page, asked = Page(root), {"experiment": "one"}

    def write(*ended: float) -> None:
        chunks = [{"run": 0, "chunk": n, "step": n, "started": 0.0, "ended": end} for n, end in enumerate(ended, 1)]
        (root / "timeline.json").write_text(json.dumps({"chunks": chunks}))

    def said(ops: int, chunks: str) -> tuple[Any, ...]:
        state = page.ask("/state", **asked, ops=ops, chunks=chunks).json
        ops = [op["detail"] for op in state["ops"]]
        return state["ops_from"], ops, state["timeline_from"], [chunk[3] for chunk in state["timeline"]]

    write(1.5, 2.5)
    journal = [json.dumps({"op": "stop", "detail": text}) + "\n" for text in ("a", "b")]
    (root / "ops.jsonl").write_text(journal[0])
    assert said(0, "0,0") == (0, ["a"], 0, [1.5, 2.5])
    write(1.5, 2.5, 3.25)
    (root / "ops.jsonl").write_text("".join(journal))
    assert said(1, "2,2.5") == (1, ["b"], 2, [3.25])
    assert said(2, "3,3.25") == (2, [], 3, [])
    write(1.5, 2.75)  # it went on from an earlier checkpoint
    assert said(2, "3,3.25") == (2, [], 0, [1.5, 2.75])
    assert said(9, "2,2.5") == (2, [], 0, [1.5, 2.75]) and said(-1, "-2,7") == (0, ["a", "b"], 0, [1.5, 2.75])


def test_the_end_of_a_log_is_read_without_secrets(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    (root / "runs/0/run.log").write_text("x" * 30_000 + "\nhf_token: abcdefgh\nlast line")
    said = Page(root).ask("/run", experiment="one", run=0).json["log"]
    assert len(said) <= 20_000 and said.endswith("hf_token: (hidden)\nlast line")


@pytest.mark.parametrize("query", [{"experiment": "../one"}, {"experiment": "one", "run": "7"}, {"experiment": "one"}])
def test_what_is_not_there_is_refused(tmp_path: Path, query: dict[str, str]) -> None:
    answer = Page(make_experiment(tmp_path / "one")).ask("/run", **query)
    assert answer.status_code == 400 and answer.json["error"]


def test_another_site_whose_name_leads_here_reads_nothing(tmp_path: Path) -> None:
    """DNS rebinding; a forged port or a dot at the end makes no difference."""
    root = make_experiment(tmp_path / "one")
    for host in ("evil.test:6006", "localhost.evil.test", "127.0.0.1.evil.test:80"):
        answer = Page(root).ask("/state", host=host, experiment="one")
        assert answer.status_code == 403 and "runs" not in answer.json
    assert Page(root, bind_all=True).ask("/state", host="box:6006", experiment="one").status_code == 200
    assert Page(root).ask("/state", host="[::1]:6006", experiment="one").status_code == 200


def test_what_reads_takes_nothing(tmp_path: Path) -> None:
    page = Page(make_experiment(tmp_path / "one"))
    for route in ("/experiments", "/state", "/run", "/generations", "/answer"):
        assert page.ask(route, method="POST", experiment="one").status_code == 405


def test_the_page_is_served_and_nothing_beside_it(tmp_path: Path) -> None:
    page = Page(make_experiment(tmp_path / "one"))
    assert page.file("app.js").content_type.startswith("text/javascript")
    for name in ("../plugin.py", "%2e%2e/plugin.py", "..%2fplugin.py", "", "vendor"):
        assert page.file(name).status_code == 404


def test_the_page_asks_no_other_host() -> None:
    """TensorBoard's content security policy forbids it."""
    from rfflow.dashboard.plugin import STATIC

    for path in [each for each in STATIC.glob("*.*") if each.is_file()]:
        assert "http://" not in path.read_text() and "https://" not in path.read_text()
    assert {path.stem for path in (STATIC / "vendor").glob("*.LICENSE")} == {"htm", "preact", "uplot"}


def test_an_experiment_says_what_can_be_done_with_it(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    state = Page(root).ask("/state", experiment="one").json
    assert state["no_ops"].endswith(f"rfflow resume={root}") and not state["alive"]
    StatusFile(root / "control").write(Status(str(root)))
    assert "To go on with it" in Page(root).ask("/state", experiment="one").json["no_ops"], "it has hardly begun"
    with held(root):
        assert Page(root).ask("/state", experiment="one").json["no_ops"] is None
    (root / "multirun.yaml").write_text("control: {enabled: false}")
    lock = lock_of_experiment(root)
    lock.acquire()
    try:
        assert "control.enabled=false" in Page(root).ask("/state", experiment="one").json["no_ops"]
    finally:
        lock.release()


def test_waiting_and_a_policy_are_told(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    config = "policy: {_target_: rfflow.policies.halving.Halving}\ncontrol: {idle_timeout: 30}"
    (root / "multirun.yaml").write_text(config)
    with held(root):
        assert Page(root).ask("/state", experiment="one").json["hint"].startswith("Halving issues ops")
        StatusFile(root / "control").write(Status(str(root), (RunStatus(0, "stopped"),), waiting=True))
        page = Page(root)
        assert "30 s (control.idle_timeout)" in page.ask("/state", experiment="one").json["hint"]
        (root / "multirun.yaml").write_text("control: {idle_timeout: 5}")  # as resume= with another one does
        assert " 5 s (control.idle_timeout)" in page.ask("/state", experiment="one").json["hint"]


def test_runs_are_ranked_with_their_time_and_what_is_left(tmp_path: Path) -> None:
    first, second = Page(make_experiment(tmp_path / "one")).ask("/state", experiment="one").json["runs"]
    assert (first["rank"], first["seconds"], first["left"]) == (1, 2.0, 6.0) and second["rank"] == 2


def test_a_control_directory_elsewhere_is_found(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    (root / "control").rename(tmp_path / "elsewhere")
    config = {"control": {"dir": "elsewhere"}, "hydra": {"runtime": {"cwd": str(tmp_path)}}}
    (root / "multirun.yaml").write_text(json.dumps(config))
    (root / "experiment.json").write_text("")
    assert len(Page(root).ask("/state", experiment="one").json["runs"]) == 2


def test_an_op_that_is_answered_at_once_comes_back_with_its_answer(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    page = Page(root)
    with held(root):
        (root / "control/done").mkdir()
        (root / "control/done/1.yaml").write_text("")
        (root / "control/done/1.yaml.outcome").write_text("Run 0 was stopped.")
        assert page.ask("/answer", experiment="one", file="1.yaml").json == {
            "applied": True,
            "text": "Run 0 was stopped.",
        }
        assert page.ask("/answer", experiment="one", file="2.yaml").json == {}
    assert "ended before" in page.ask("/answer", experiment="one", file="2.yaml").json["text"]


def test_generations_of_several_runs_come_together(tmp_path: Path) -> None:
    root = make_experiment(tmp_path / "one")
    line = {"step": 3, "chunk": 1, "row": 0, "prompt": "Why?", "answer": "So.", "reference": ""}
    (root / "runs/1/generations.jsonl").write_text(json.dumps(line) + "\n")
    assert Page(root).ask("/generations", experiment="one", runs="0,1").json == {"runs": {"0": [], "1": [line]}}
