"""What the tab in TensorBoard costs while one looks at it, and how long an op takes that is given there.

    python benchmarks/tab.py

CPU time of TensorBoard's process for a poll, without the web server, where nothing has changed and where one run has
ended a chunk: logged a line, and the status and the timeline were written anew; and, of an experiment that waits, the
time until an op is answered: over HTTP, and from a click in the system's Chromium until the answer stands in the page.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from werkzeug.test import Client

from benchmarks.figures import Figure, table
from rfflow.control.ownership import living_owner
from rfflow.control.status import RunStatus, Status, StatusFile
from rfflow.dashboard.plugin import RfflowPlugin
from rfflow.runs.paths import ExperimentPaths
from tests.dashboard.browsing import Tab, chromium, process, served

POLLS = 50
LINES = 100
"""Lines that each run has logged."""
CHUNKS = 10
"""Chunks that each run has trained."""
BELOW = {4: 1.0, 64: 3.0, 500: 15.0}
"""Milliseconds of a poll in which nothing has changed, by the number of runs."""


class Page:
    """Asks the plugin as the page does."""

    def __init__(self, root: Path):
        self._plugin = RfflowPlugin(SimpleNamespace(logdir=str(root), flags=SimpleNamespace()))
        self._apps = self._plugin.get_plugin_apps()
        self._root = root
        self._seen: dict[str, Any] = {"tag": "", "since": 0, "ops": 0, "chunks": "0,0"}

    def poll(self) -> float:
        """Ask for what is new; return the milliseconds of CPU time."""
        query = {"experiment": self._root.name, **self._seen}
        begun = time.process_time()
        answer = self._open("/state", query_string={**query, "metrics": "loss,eval_loss"})
        taken = time.process_time() - begun
        said = answer.json
        self._seen |= {"tag": said["tag"], "since": said["cursor"]}
        if "timeline" in said:
            chunks = said["timeline_from"] + len(said["timeline"])
            ended = said["timeline"][-1][3] if said["timeline"] else self._seen["chunks"].partition(",")[2]
            self._seen |= {"ops": said["ops_from"] + len(said["ops"]), "chunks": f"{chunks},{ended}"}
        return taken * 1000

    def _open(self, route: str, **arguments: Any) -> Any:
        address = {"REMOTE_ADDR": "127.0.0.1"}
        client = Client(self._apps[route])
        return client.open(f"/data/plugin/rfflow{route}", environ_overrides=address, **arguments)


def polls(folder: Path, number: int) -> list[Figure]:
    """Measure polls of an experiment of so many runs."""
    root = folder / f"of-{number}"
    paths = ExperimentPaths(root)
    paths.control.mkdir(parents=True)
    status = _status(paths, number)
    StatusFile(paths.control).write(status)
    for run in range(number):
        log = paths.run(run).metrics
        log.parent.mkdir(parents=True)
        log.write_text("".join(_line(step) for step in range(LINES)))
    chunks = [_chunk(run, chunk) for chunk in range(CHUNKS) for run in range(number)]
    paths.timeline.write_text(json.dumps({"runs": [], "chunks": chunks}))
    page = Page(root)
    page.poll()
    still = [page.poll() for _ in range(POLLS)]
    moving = []
    for step in range(POLLS):
        with paths.run(0).metrics.open("a") as file:
            file.write(_line(LINES + step))
        StatusFile(paths.control).write(status)
        chunks.append(_chunk(0, CHUNKS + step))
        paths.timeline.write_text(json.dumps({"runs": [], "chunks": chunks}))
        moving.append(page.poll())
    return [
        Figure(f"{number} runs, nothing new", tuple(still), "ms", BELOW[number]),
        Figure(f"{number} runs, a chunk has ended", tuple(moving), "ms"),
    ]


def _status(paths: ExperimentPaths, number: int) -> Status:
    metrics = {"loss": 2.0, "eval_loss": 2.1, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 0.5}
    runs = [RunStatus(n, "running" if n < 2 else "queued", (f"lr={n}",), 1, 4, 25, 100, metrics) for n in range(number)]
    return Status(str(paths.root), tuple(runs))


def _chunk(run: int, chunk: int) -> dict[str, Any]:
    begun = 1e9 + chunk * 100 + run / 10
    return {"run": run, "chunk": chunk + 1, "step": chunk * 10, "started": begun, "ended": begun + 9.5, "slot": 0}


def _line(step: int) -> str:
    metrics = {"loss": 2.0 - step / 1000, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": step / 100}
    return json.dumps({"time": 1e9 + step, "step": step, "chunk": 1, "metrics": metrics}) + "\n"


TIMES = 20
"""Clicks."""
CLICK = """async verb => {
  const log = document.querySelector('#ops'), before = log.querySelector('.answer');
  const isAnswered = () => log.querySelector('.answer') !== before && log.querySelector('.answer').matches('.applied');
  const begun = performance.now();
  document.getElementById(verb).click();
  await new Promise(done => {
    const watch = new MutationObserver(() => { if (isAnswered()) { watch.disconnect(); done(); } });
    watch.observe(log, {childList: true, subtree: true, attributes: true});
  });
  return performance.now() - begun;
}"""
"""Milliseconds from a click in the page until its answer stands there."""


def clicks(folder: Path) -> list[Figure]:
    """Measure from an op to its answer, in an experiment that waits and whose runs only count."""
    root, output = folder / "outputs" / "toys", folder / "toys.txt"
    with process("-m", "tests.dashboard.toys", str(root), folder=folder, output=output) as running:
        while living_owner(root / "control") is None or not (root / "timeline.json").exists():
            assert running.poll() is None, output.read_text()
            time.sleep(0.1)
        with served(root) as address:
            figures = [Figure("an op over HTTP to its answer", tuple(_over_http(address)), "ms", 100.0)]
            if chromium() is None:
                print("There is no Chromium: what a browser adds was not measured.")
            else:
                figures.append(
                    Figure("from a click to its answer in the page", tuple(_in_a_browser(address)), "ms", 100.0)
                )
    return figures


def _over_http(address: str) -> list[float]:
    base = f"{address.partition('#')[0]}data/plugin/rfflow"
    with urllib.request.urlopen(f"{base}/experiments") as answer:
        listed = json.load(answer)
    headers = {"Content-Type": "application/json", "X-Rfflow": listed["token"]}

    def give(op: dict[str, Any]) -> float:
        body = json.dumps({"experiment": listed["experiments"][0]["name"], "op": op}).encode()
        begun = time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(f"{base}/op", body, headers)) as answer:
            said = json.load(answer)
        assert said.get("applied"), said
        return (time.perf_counter() - begun) * 1000

    give({"op": "stop", "run": "all"})
    taken = []
    for _ in range(TIMES):
        taken.append(give({"op": "resume", "run": 0}))
        give({"op": "stop", "run": 0})
    return taken


def _in_a_browser(address: str) -> list[float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = Tab(browser.new_page(), address)
        tab.select(0)
        taken = []
        for _ in range(TIMES):
            tab.at("#resume:enabled").wait_for()
            taken.append(tab.at("html").evaluate(f"(_, verb) => ({CLICK})(verb)", "resume"))
            tab.at("#stop:enabled").wait_for()
            tab.at("html").evaluate(f"(_, verb) => ({CLICK})(verb)", "stop")
        browser.close()
    return taken


def main() -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as name:
        figures = [figure for number in BELOW for figure in polls(Path(name), number)]
        figures += clicks(Path(name))
    print(table(figures))


if __name__ == "__main__":
    main()
