"""Makes the pictures of the README and the recipes. Nothing of rfflow needs this script.

    python -m docs.pictures outputs/interactive/<time> docs/pictures/interactive

It shows an experiment's directory in TensorBoard (on loopback) and takes pictures of its pages with Chromium, which
`apt-get install chromium` brings. With pngquant there too, the files become a third of their size.

    python -m rfflow ... +callbacks.pictures._target_=docs.pictures.TablePictures

draws the terminal's table at the start of every chunk into `table/` of the experiment's directory.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run
from rfflow.tracking.layout import live_table


class TablePictures:
    """A callback that draws the live table at the start of every chunk, as it stands in the terminal then.

    Args:
        width: of the terminal, in characters.
    """

    def __init__(self, width: int = 78):
        self._width = width
        self._count = 0

    def on_chunk_start(self, experiment: Experiment, run: Run) -> None:
        """Draw it as ``table/<number>.svg``."""
        console = Console(record=True, width=self._width, height=30, file=io.StringIO(), force_terminal=True)
        console.print(live_table(experiment, console, run.number))
        svg = console.export_svg(title="python -m rfflow")
        folder = experiment.paths.root / "table"
        folder.mkdir(exist_ok=True)
        self._count += 1
        # The fonts that rich names are on the web; the reader's own will do.
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        (folder / f"{self._count}.svg").write_text(svg, encoding="utf-8")


# --- TensorBoard's pages ----------------------------------------------------------------------------------------------

# Its components hide in shadow roots; `find` looks through them.
SCRIPTS = """
function find(selector, root = document) {
  const found = [...root.querySelectorAll(selector)];
  for (const element of root.querySelectorAll('*'))
    if (element.shadowRoot) found.push(...find(selector, element.shadowRoot));
  return found;
}
function click(selector, text) {
  const wanted = find(selector).filter(element => !text || element.textContent.trim() == text);
  wanted.slice(0, 1).forEach(element => element.click());
  return wanted.length > 0;
}
"""
SCALARS = "?smoothing=0&runFilter=%5E%5Cd%2B%24&tagFilter={tags}#timeseries"
COLUMNS = "tb-data-table-column-selector-component"


def pages(column: str, tags: Sequence[str]) -> dict[str, tuple[str, Sequence[str]]]:
    """Return where each page is, and what is done to it, one after the other, until each script returns true."""
    return {
        "scalars": (
            SCALARS.format(tags=urllib.parse.quote(f"^({'|'.join(tags)})$")),
            (
                f"return find('line-chart').length == {len(tags)}",
                # Else the first and the best values of a curve may lie outside its chart.
                "const box = find('mat-checkbox').find(it => it.textContent.includes('Ignore outliers'))"
                "?.querySelector('input'); if (box?.checked) box.click(); return box && !box.checked",
                """return click('button[aria-label="Toggle settings side pane"]')""",
                """return !click('button[aria-label="Deselect fob"]')""",
                """return click('button[title="Add Column"]')""",
                f"return click('{COLUMNS} button', {json.dumps(column)})",
                f"document.body.click(); return find('{COLUMNS}').length == 0",
            ),
        ),
        "hparams": ("#hparams", ("return find('vaadin-grid').length > 0",)),
        "custom-scalars": ("#custom_scalars", ("return find('vz-line-chart2').length >= 3",)),
    }


class Browser:
    """A page of Chromium, told what to do over its debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._number = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    async def until(self, script: str, seconds: float = 60) -> None:
        """Run JavaScript in the page again and again until it returns true."""
        for _ in range(int(seconds / 0.5)):
            expression = f"(() => {{ {SCRIPTS} {script} }})()"
            answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
            if "exceptionDetails" in answer:
                raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
            await asyncio.sleep(0.5)
            if answer["result"].get("value") is True:
                return
        raise TimeoutError(f"In {seconds:.0f} s this was never true: {script}")

    async def picture(self, file: Path) -> None:
        """Save what the page shows."""
        answer = await self.ask("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(answer["data"]))


async def take(experiment: Path, prefix: str, column: str, tags: Sequence[str], width: int, height: int) -> None:
    """Take a picture of each page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium here: apt-get install chromium")
    board, debug = free_port(), free_port()
    root = experiment.resolve()
    logs = root / "tb"
    # Some pages show where the logs are: from beside the experiment that is no path of this machine.
    where = ["--logdir", str(logs.relative_to(root.parent)), "--host=127.0.0.1", f"--port={board}"]
    tensorboard = [sys.executable, "-m", "tensorboard.main", *where, "--load_fast=false"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as stack:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        stack.enter_context(program(tensorboard, root.parent))
        stack.enter_context(program([chromium, *options, f"--remote-debugging-port={debug}", "about:blank"]))
        directories = sum(path.is_dir() for path in logs.iterdir())
        while len(json.loads(await answer(f"http://127.0.0.1:{board}/data/runs"))) < directories:
            await asyncio.sleep(0.2)
        targets = json.loads(await answer(f"http://127.0.0.1:{debug}/json"))
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as websocket:
            browser = Browser(websocket)
            await browser.ask("Page.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            await browser.ask("Emulation.setDeviceMetricsOverride", **size)
            for name, (place, scripts) in pages(column, tags).items():
                await browser.ask("Page.navigate", url=f"http://127.0.0.1:{board}/{place}")
                for script in scripts:
                    await browser.until(script)
                await asyncio.sleep(5)  # the curves are drawn last, and nothing in the page says when
                file = Path(f"{prefix}-{name}.png")
                await browser.picture(file)
                shrink(file)
                print(f"{file}  {file.stat().st_size // 1000} kB")


@contextlib.contextmanager
def program(command: Sequence[str], folder: Path | None = None) -> Iterator[None]:
    """Run a program, in a folder, until the block ends."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def answer(url: str) -> bytes:
    """Wait until a server answers, and return what."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bytes(response.read())
        except OSError:
            await asyncio.sleep(0.1)
    raise TimeoutError(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shrink(file: Path) -> None:
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--skip-if-larger", "--output", str(file), str(file)], check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes pictures of an experiment in TensorBoard.")
    parser.add_argument("experiment", type=Path, help="its directory, such as outputs/sft/2026-01-31_12-00-00")
    parser.add_argument("prefix", help="what the pictures' names begin with, such as docs/pictures/sft")
    parser.add_argument("--column", default="lr", help="the swept key that names the runs")
    parser.add_argument("--tags", nargs="+", default=["eval/loss", "train/loss"], help="whose curves are shown")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 560), metavar=("WIDTH", "HEIGHT"))
    given = parser.parse_args()
    asyncio.run(take(given.experiment, given.prefix, given.column, given.tags, *given.size))
