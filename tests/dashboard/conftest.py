"""Keys of tests lie elsewhere than the user's own, and a browser is started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browsing import chromium


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a key is made."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium; names under .test lead to this machine."""
    pytest.importorskip("playwright", reason="NO BROWSER TEST WAS RUN: the package playwright is not installed")
    if (path := chromium()) is None:
        pytest.skip("NO BROWSER TEST WAS RUN: there is no Chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1"]
        browser = play.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Open pages of the usual size, and close them."""
    contexts = []

    def new(width: int = 1500, height: int = 950, **settings: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **settings))
        return contexts[-1].new_page()

    yield new
    for context in contexts:
        context.close()
