"""``%tensorboard`` in a notebook shows the tab: what the magic makes is put into a page as a notebook does it."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.dashboard.browsing import ROOT
from tests.dashboard.made import held, make_experiment

pytestmark = pytest.mark.browser
BINARY = """import sys
sys.path[:0] = {path!r}
from tensorboard.main import run_main
run_main()
"""
"""TensorBoard's own takes no PYTHONPATH from a notebook."""


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Be the kernel of a notebook, as far as TensorBoard's magic looks; end what it starts."""
    from tensorboard import manager

    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    kernel = SimpleNamespace(has_trait=lambda name: name == "kernel")
    display = SimpleNamespace(HTML=str, Pretty=str, display=lambda text, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    binary = tmp_path / "tensorboard"
    binary.write_text(f"#!{sys.executable}\n{BINARY.format(path=[str(ROOT), *filter(None, sys.path)])}")
    binary.chmod(0o755)
    monkeypatch.setenv("TENSORBOARD_BINARY", str(binary))
    yield shown
    for info in manager.get_all():
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, signal.SIGTERM)


def test_the_magic_shows_the_tab(displayed: list[str], tmp_path: Path, open_page: Any) -> None:
    """To read only, as in any page of another site; a click opens it by itself, where ops can be given."""
    from tensorboard import notebook

    root = make_experiment(tmp_path / "outputs" / "sft" / "one")
    with held(root):
        notebook.start(f"--logdir {tmp_path}/outputs --port 0 --load_fast false")
        assert displayed and "<iframe" in displayed[-1], displayed
        (tmp_path / "notebook.html").write_text(f"<h1>A notebook</h1>{displayed[-1]}")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        handler.log_message = lambda *words: None  # type: ignore[attr-defined]
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                _look(open_page(), f"http://localhost:{server.server_address[1]}/notebook.html")
            finally:
                server.shutdown()


def _look(page: Any, address: str) -> None:
    page.set_default_timeout(30_000)
    page.goto(address)
    tensorboard = page.frame_locator("iframe[id^=tensorboard-frame]")
    tensorboard.locator(".plugin-name", has_text="rfflow").click()
    tab = tensorboard.frame_locator("iframe[src*='name=rfflow']")
    tab.locator("#runs tr[data-run='0'] td.running").wait_for()
    tab.locator("#readonly", has_text="a notebook, shows this page").wait_for()
    tab.locator("tr[data-run='0'] [data-key=state]").click()
    assert tab.locator("#stop").is_disabled()
    with page.context.expect_page() as opened:
        tab.locator("#readonly a").click()
    alone = opened.value.frame_locator("iframe[src*='name=rfflow']")
    alone.locator("tr[data-run='0'] [data-key=state]").click()
    alone.locator("#stop:enabled").wait_for()
    assert alone.locator("#readonly").count() == 0
