"""The tab in a real browser: what people do there, by clicks and keys, and what other sites' pages try."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.control.ownership import living_owner
from rfflow.control.status import RunStatus, Status, StatusFile
from tests.dashboard.browsing import Tab, process, served, served_to_all
from tests.dashboard.made import held, log, make_experiment

pytestmark = pytest.mark.browser
HERE = Path(__file__).parent


def begun(running: subprocess.Popen[bytes], root: Path, output: Path) -> None:
    """Wait until an experiment has trained its first chunk."""
    while living_owner(root / "control") is None or not (root / "timeline.json").exists():
        assert running.poll() is None, output.read_text()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.1)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An experiment of four runs that only count, in a process of its own."""
    folder = tmp_path_factory.mktemp("toys")
    root, output = folder / "outputs" / "toys", folder / "toys.txt"
    with process("-m", "tests.dashboard.toys", str(root), folder=folder, output=output) as running:
        begun(running, root, output)
        yield root


@pytest.fixture(scope="module")
def address(toys: Path) -> Iterator[str]:
    with served(toys.parent) as address:
        yield address


def test_a_session_by_clicks(toys: Path, address: str, open_page: Any) -> None:
    tab = Tab(open_page(), address)
    tab.at("#going", "running").wait_for()
    assert tab.at("#stop").is_disabled() and tab.at("#stop").get_attribute("title") == "Select runs first."

    tab.select(0, 1)
    tab.at("#stop").click()
    assert "Run 0 was stopped" in tab.answer("Run 1 was stopped")
    tab.state(0, "stopped")
    assert tab.at("#stop").is_disabled() and "Run 0 is stopped" in tab.at("#stop").get_attribute("title")

    tab.select(0)
    tab.at("#clone").click()
    tab.at("#overrides").press_sequentially("lr=1e-3,,")
    tab.at("#check.current .bad", "not in Hydra's grammar").wait_for()
    assert tab.at("#submit").is_disabled()
    tab.at("#overrides").fill("trainer.args.learning_rat=1")
    tab.at("#check.current .bad", "Did you mean 'learning_rate'?").wait_for()
    tab.at("#overrides").fill("trainer.args.warm")
    tab.at("#matches [role=option]", "trainer.args.warmup_steps=").wait_for()
    tab.at("#overrides").press("Tab")
    assert tab.at("#overrides").input_value() == "trainer.args.warmup_steps="
    tab.at("#overrides").fill("lr=5,6")
    tab.at("#check.current .good", "2 clones").wait_for()
    assert "trainer.args.learning_rate" in tab.at("#check").inner_text()
    tab.at("#submit", "Make 2 clones").click()
    tab.answer("Run 0 was cloned as run 5")
    tab.row(4).wait_for()

    tab.select(5)
    tab.at("#delete").click()
    tab.at("dialog", "Delete run 5?").wait_for()
    tab.at("dialog button", "Cancel").click()
    tab.at("#delete").click()
    assert tab.row(5).locator("td.deleted").count() == 0
    tab.at("#really").click()
    tab.answer("Run 5 was deleted")
    tab.state(5, "deleted")

    tab.select(1)
    tab.at("#resume").click()
    tab.answer("Run 1 goes on")
    tab.state(1, "running")
    assert tab.at("#ops .pill", "person, here").count() >= 6
    ops = [json.loads(line) for line in (toys / "ops.jsonl").read_text().splitlines()]
    assert {op["by"] for op in ops} == {"person"} and all(op["file"].endswith("-tab.yaml") for op in ops)
    assert not tab.errors


def test_the_keyboard_is_enough(address: str, open_page: Any) -> None:
    tab = Tab(open_page(), address)
    tab.row(2).focus()
    tab.page.keyboard.press("Space")
    tab.at("tr.selected[data-run='2']").wait_for()
    tab.at("#clone").focus()
    tab.page.keyboard.press("Enter")
    tab.at("#overrides").wait_for()
    tab.page.keyboard.type("lr=7")
    tab.at("#check.current .good", "1 clone").wait_for()
    tab.page.keyboard.press("Enter")
    tab.answer("Run 2 was cloned as run")
    tab.at("#delete").focus()
    tab.page.keyboard.press("Enter")
    tab.at("dialog").wait_for()
    tab.page.keyboard.press("Escape")
    tab.at("dialog").wait_for(state="detached")
    tab.row(2).focus()
    tab.page.keyboard.press("Enter")
    tab.at("#config tbody tr").first.wait_for()
    tab.page.keyboard.press("Tab")
    assert not tab.errors


def test_a_click_on_a_curve_selects_its_run(address: str, open_page: Any) -> None:
    tab = Tab(open_page(), address)
    tab.at("#filter").fill("run=3")
    tab.at("#metric").select_option("loss")
    tab.at("#axis").select_option("chunk")
    over = tab.at("#plot .u-over")
    over.wait_for()
    box = over.bounding_box()
    for part in range(1, 20):  # somewhere is its curve, which is flat
        tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * part / 20)
        tab.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * part / 20)
        if tab.at("tr.selected[data-run='3']").count():
            break
    tab.at("tr.selected[data-run='3']").wait_for()
    assert tab.at("#runs tbody tr").count() == 1
    assert not tab.errors


def test_a_hidden_tab_asks_for_nothing(address: str, open_page: Any) -> None:
    tab = Tab(open_page(), address)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url) if "/rfflow/" in request.url else None)
    with tab.page.expect_request(lambda request: "/rfflow/state" in request.url):
        pass
    frame = "document.querySelector('iframe[src*=rfflow]')"
    tab.page.evaluate("location.hash = '#text'")
    tab.page.wait_for_function(f"getComputedStyle({frame}).visibility === 'hidden'")
    tab.page.wait_for_timeout(500)  # what was under way
    asked.clear()
    tab.page.wait_for_timeout(2500)
    assert not asked
    with tab.page.expect_request(lambda request: "/rfflow/state" in request.url):
        tab.page.evaluate("location.hash = '#rfflow'")


def test_many_runs_a_second_experiment_a_prefix_and_a_dark_narrow_window(tmp_path: Path, open_page: Any) -> None:
    logdir = tmp_path / "outputs"
    many, few = make_experiment(logdir / "sft" / "many"), make_experiment(logdir / "sft" / "few")
    runs = []
    for number in range(500):
        (many / "runs" / str(number)).mkdir(exist_ok=True)
        for step in range(1, 4):
            log(many, number, step, loss=3.0 - number / 500 - step / 10)
        overrides = ("+recipe=sft", f"lr={1e-5 * (number + 1):g}")
        state, metrics = "running" if number % 2 else "stopped", {"loss": 3 - number / 500}
        runs.append(RunStatus(number, state, overrides, 1, 4, 3, 12, metrics))
    StatusFile(many / "control").write(Status(str(many), tuple(runs)))
    with held(many), served(logdir, "--path_prefix", "/tb") as address:
        assert "/tb/" in address
        tab = Tab(open_page(900, 900), address)
        assert tab.at("#experiment").input_value() == "sft/many"
        assert tab.at("#runs tbody tr").count() == 500
        assert tab.at("#runs tbody tr").first.get_attribute("data-run") == "499"
        tab.at("#plot canvas").wait_for()
        tab.at("#filter").fill("lr>4.9e-3 state:running")
        shown = [row.get_attribute("data-run") for row in tab.at("#runs tbody tr").all()]
        assert shown == ["499", "497", "495", "493", "491"]
        tab.row(499).focus()
        tab.page.keyboard.press("Tab")
        assert tab.at("html").evaluate("() => document.activeElement.closest('#runs')") is None, "one stop for all rows"
        tab.row(499).locator("[data-key=state]").click()
        tab.row(495).locator("[data-key=state]").click(modifiers=["Shift"])
        tab.at("#selection", "run 495, 497, 499 selected").wait_for()
        tab.at("[aria-label='select all']").check()
        tab.at("#selection", "run 491, 493, 495, 497, 499 selected").wait_for()
        tab.at("#selection button").click()
        tab.at("#filter").fill("nothing>1")
        tab.at(".bad", "no run has nothing").wait_for()
        tab.at("#filter").fill("lr>4.9e-3")
        tab.at("[data-pin='490']").click()
        assert tab.at("#runs tbody tr").first.get_attribute("data-run") == "490"
        assert "\N{MINUS SIGN}0.018" in tab.row(499).locator("[data-key=objective]").inner_text()
        tab.at(".menu summary").click()
        tab.at("[data-column='override lr']").check()
        tab.page.evaluate("document.body.classList.add('dark-mode')")
        tab.at("html.dark").wait_for()
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not tab.at("html").evaluate(f"() => {wide}")
        tab.page.reload()
        tab.at("th", "lr").first.wait_for()
        tab.at("#experiment").select_option("sft/few")
        tab.at("#noops").wait_for()
        assert tab.at("#runs tbody tr").count() == 2 and "No process trains here" in tab.at("#noops").inner_text()
        tab.select(0)
        assert tab.at("#stop").is_disabled()
        assert not tab.errors
    assert few.exists()


# --- other sites ------------------------------------------------------------------------------------------------------


class OtherSite(http.server.SimpleHTTPRequestHandler):
    """Serves its pages, and hands on what is posted to it."""

    def do_POST(self) -> None:
        self.send_response(307)
        self.send_header("Location", urllib.parse.unquote(self.path.partition("to=")[2]))
        self.end_headers()

    def log_message(self, format: str, *words: Any) -> None:
        """Be silent."""


def test_pages_of_other_sites_reach_nothing(toys: Path, address: str, open_page: Any, tmp_path: Path) -> None:
    server = address.partition("#")[0]
    (tmp_path / "index.html").write_text("<iframe name=sink></iframe>")
    (tmp_path / "frame.html").write_text(f'<iframe id=tb src="{address}" width=1400 height=900></iframe>')
    handler = functools.partial(OtherSite, directory=str(tmp_path))
    before = (toys / "ops.jsonl").read_text() if (toys / "ops.jsonl").exists() else ""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            page = open_page()
            for host in ("127.0.0.1", "evil.test"):
                page.goto(f"http://{host}:{other.server_address[1]}/")
                said = page.evaluate((HERE / "attack.js").read_text(), f"{server}data/plugin/rfflow/")
                assert said["json"] == said["the token"] == said["kept alive"] == "TypeError"
                assert (said["script"], said["events"], said["popup"]) == ("", "refused", "SecurityError")
            port = server.rpartition(":")[2]
            page.goto(f"http://evil.test:{port}data/logdir")
            assert page.evaluate((HERE / "rebound.js").read_text()) == [403, False, 403]
            # Another program of this machine; in a frame of another site TensorBoard has no storage and shows nothing.
            page.goto(f"http://localhost:{other.server_address[1]}/frame.html")
            inside = page.frame_locator("#tb").frame_locator("iframe[src*='name=rfflow']")
            inside.locator("#readonly", has_text="another site, or a notebook, shows this page").wait_for(
                timeout=30_000
            )
            assert inside.locator("#stop").is_disabled()
        finally:
            other.shutdown()
    assert ((toys / "ops.jsonl").read_text() if before else "") == before


def test_from_elsewhere_the_key_is_pasted_once(tmp_path: Path, state_home: Path, open_page: Any) -> None:
    """Where TensorBoard serves others: a page that came by another name only reads until it has the key."""
    root = make_experiment(tmp_path / "outputs" / "one")
    with held(root), served_to_all(root.parent) as port:
        tab = Tab(open_page(), f"http://box.test:{port}/#rfflow")
        assert "opened as box.test" in tab.at("#readonly").inner_text()
        tab.select(0)
        file = state_home / "rfflow" / "tab-key"
        for key, is_enabled in (("x" * 43, False), (file.read_text(), True)):
            assert tab.at("#stop").is_disabled()
            tab.at("#key").fill(key.strip())
            with tab.page.expect_response(lambda response: "/experiments" in response.url):
                tab.at("#readonly button").click()
            tab.at("#readonly").wait_for(state="detached" if is_enabled else "attached")
        tab.page.reload()
        tab.row(0).wait_for()
        tab.select(0)
        tab.at("#stop:enabled").click()
        tab.at("#ops .answer", "it is applied at the end of the chunk").wait_for()
        assert len([*(root / "control").glob("*-stop-tab.yaml")]) == 1
        assert not tab.errors


# --- real training ----------------------------------------------------------------------------------------------------


def test_real_runs_are_steered_by_clicks(tiny_model: Path, tiny_data: Path, tmp_path: Path, open_page: Any) -> None:
    """Stopped, cloned with a typo and then as a sweep with the parent's weights, deleted, resumed."""
    root = tmp_path / "outputs" / "sft" / "one"
    root.parent.mkdir(parents=True)
    words = [
        "model=hub",
        f"model.name={tiny_model}",
        "dataset=local",
        f"dataset.path={tiny_data}",
        "dataset.eval_size=8",
    ]
    words += ["peft=lora_small", "--multirun", "lr=1e-3,1e-4", "chunks=8", "trainer.args.num_train_epochs=20"]
    words += ["evaluation.generate.samples=2", "evaluation.generate.max_new_tokens=4", f"hydra.sweep.dir={root}"]
    with (
        process("-m", "rfflow", "+recipe=sft", *words, folder=tmp_path, output=tmp_path / "training.txt") as training,
        served(tmp_path / "outputs") as address,
    ):
        begun(training, root, tmp_path / "training.txt")
        tab = Tab(open_page(), address)
        tab.select(1)
        tab.at("#stop").click()
        tab.answer("Run 1 was stopped")
        tab.select(0)
        tab.at("#clone").click()
        tab.at("#overrides").fill("trainer.args.learning_rat=1e-3")
        tab.at("#check.current .bad", "Did you mean 'learning_rate'?").wait_for()
        tab.at("#overrides").fill("peft.r=16")
        tab.at("#warm").check()
        tab.at("#check.current .bad", "A warm start needs the architecture of run 0").wait_for()
        tab.at("#overrides").fill("lr=5e-4,2e-4")
        tab.at("#check.current .good", "2 clones").wait_for()
        tab.at("#submit").click()
        tab.answer("Run 0 was cloned as run 3 from its weights")
        tab.select(2)
        tab.at("#delete").click()
        tab.at("#really").click()
        tab.answer("Run 2 was deleted")
        tab.select(1)
        tab.at("#resume").click()
        tab.answer("Run 1 goes on")
        tab.select(0, 3)
        tab.at("#open").click()
        tab.at("#config td", "trainer.args.learning_rate").wait_for()
        tab.at("[role=tab]", "generations").click()
        tab.at("#generations td").first.wait_for()
        tab.select(0)
        tab.at("[role=tab]", "log").click()
        tab.at("#log").wait_for()
        assert not tab.errors
