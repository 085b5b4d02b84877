"""A real browser on a real TensorBoard."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 30_000
"""Milliseconds until something that should come is missed; it usually comes within a tenth of a second."""


def chromium() -> str | None:
    """Return the system's browser."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def process(*command: str, folder: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with these words, and end it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with output.open("wb") as file:
        running = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextlib.contextmanager
def served(logdir: Path, *words: str) -> Iterator[str]:
    """Run ``rfflow ui`` and return the tab's address."""
    with _serving(logdir, "rfflow", "ui", str(logdir), *words) as said:
        yield said.split()[0]


@contextlib.contextmanager
def served_to_all(logdir: Path) -> Iterator[int]:
    """Run ``tensorboard --bind_all`` and return its port."""
    with _serving(logdir, "tensorboard.main", "--logdir", str(logdir), "--bind_all") as said:
        yield int(said.rpartition(":")[2].partition("/")[0])


@contextlib.contextmanager
def _serving(logdir: Path, *words: str) -> Iterator[str]:
    """Run a module and return the line in which it says its address."""
    output = logdir.parent / f"{logdir.name}-served.txt"
    flags = ("--port", "0", "--load_fast", "false")
    with process("-m", *words, *flags, folder=logdir.parent, output=output) as running:
        while not (said := [line for line in output.read_text().splitlines() if "http://" in line]):
            if running.poll() is not None:
                raise RuntimeError(output.read_text())
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(0.1)
        yield said[0]


class Tab:
    """The tab, as somebody sees it."""

    def __init__(self, page: Any, address: str):
        self.page = page
        page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        """What the page's own code has raised, or TensorBoard's content security policy has stopped."""
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if "Content Security" in said.text else None)
        page.goto(address)
        self.frame = page.frame_locator("iframe[src*='name=rfflow']")
        self.frame.locator("#runs tbody tr").first.wait_for()

    def at(self, selector: str, text: str | None = None) -> Any:
        """Return what a selector finds, or what of it has a text."""
        return self.frame.locator(selector) if text is None else self.frame.locator(selector, has_text=text)

    def row(self, number: int) -> Any:
        """Return the row of a run."""
        return self.at(f"#runs tr[data-run='{number}']")

    def select(self, *numbers: int) -> None:
        """Click runs, the others with the control key."""
        if self.at("#selection button").count():
            self.at("#selection button").click()
        for place, number in enumerate(numbers):
            self.row(number).locator("[data-key=state]").click(modifiers=["Control"] if place else [])

    def drawn(self) -> None:
        """Wait until what was done last can be seen."""
        frames = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.at("html").evaluate(frames)

    def answer(self, text: str) -> str:
        """Wait for the answer to the last op."""
        found = self.at("#ops .answer:first-child", text)
        found.wait_for()
        return str(found.inner_text())

    def state(self, number: int, state: str) -> None:
        """Wait until a run is said to be in a state."""
        self.at(f"#runs tr[data-run='{number}'] td.{state}").wait_for()
