"""Who may give ops: what pages of other sites, other machines and other users try."""

from __future__ import annotations

import http.server
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.dashboard.guard import Guard, peer_uid
from tests.dashboard.made import held, make_experiment
from tests.dashboard.test_plugin import Page

OP = {"experiment": "one", "op": {"op": "stop", "run": 0}}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page that may give ops to an experiment which is alive and does not answer yet."""
    monkeypatch.setattr("rfflow.dashboard.guard.peer_uid", lambda environ: environ.get("test.uid", os.getuid()))
    monkeypatch.setattr("rfflow.dashboard.plugin._AT_ONCE", 0.0)
    root = make_experiment(tmp_path / "one")
    with held(root):
        yield Page(root)


def ops_in(page: Page) -> list[str]:
    return sorted(path.name for path in (page.logdir / "control").glob("*.yaml") if path.name != "status.yaml")


def test_our_own_page_gives_ops_under_its_own_name(page: Page) -> None:
    answer = page.post("/op", OP)
    assert answer.status_code == 200 and answer.json["file"] in ops_in(page)
    assert answer.json["file"].endswith("-stop-tab.yaml")


FOREIGN = {"HTTP_ORIGIN": "http://evil.test", "HTTP_SEC_FETCH_SITE": "cross-site"}
ATTACKS: dict[str, Callable[[Page], Any]] = {
    "a fetch of another site without a preflight": lambda page: page.post(
        "/op", OP, token="", content_type="text/plain", environ=FOREIGN
    ),
    "a form of another site": lambda page: page.post(
        "/op", OP, token="", content_type="application/x-www-form-urlencoded", environ=FOREIGN
    ),
    "a fetch with a header, were its preflight answered": lambda page: page.post("/op", OP, token="1", environ=FOREIGN),
    "one that knows the token": lambda page: page.post("/op", OP, environ=FOREIGN),
    "a browser that tells no origin": lambda page: page.post("/op", OP, environ={"HTTP_SEC_FETCH_SITE": "same-site"}),
    "a sandboxed frame": lambda page: page.post("/op", OP, environ={"HTTP_ORIGIN": "null"}),
    "a page that has no token": lambda page: page.post("/op", OP, token=""),
    "a name that leads here by now": lambda page: page.post(
        "/op", OP, host="evil.test:6006", environ={"HTTP_ORIGIN": "http://evil.test:6006"}
    ),
    "the same with a dot and another case": lambda page: page.post("/op", OP, host="LOCALHOST.evil.test."),
    "another machine that says it is localhost": lambda page: page.post("/op", OP, environ={"REMOTE_ADDR": "10.0.0.7"}),
    "another machine by IPv6": lambda page: page.post("/op", OP, environ={"REMOTE_ADDR": "::ffff:10.0.0.7"}),
    "another user of this machine": lambda page: page.post("/op", OP, environ={"test.uid": os.getuid() + 1}),
    "a connection that nobody knows": lambda page: page.post("/op", OP, environ={"test.uid": None}),
    "a proxy on this machine": lambda page: page.post("/op", OP, environ={"HTTP_X_FORWARDED_FOR": "10.0.0.7"}),
    "a link": lambda page: page.ask("/op", experiment="one", op="stop", run="0"),
    "a preflight": lambda page: page.ask("/op", method="OPTIONS"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nobody_else_does(page: Page, attack: str) -> None:
    answer = ATTACKS[attack](page)
    assert answer.status_code in (403, 405) and answer.json["error"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert not ops_in(page)


def test_no_reading_writes(page: Page) -> None:
    """Whatever a link or a picture of another site may ask for."""
    before = sorted(page.logdir.rglob("*"))
    for route in ("/experiments", "/state", "/run", "/generations", "/answer"):
        page.ask(route, experiment="one", run="0", runs="0", since="0", file="../../status.yaml")
    assert sorted(page.logdir.rglob("*")) == before


def test_a_page_that_may_only_read_is_told_why_and_gets_no_token(page: Page) -> None:
    said = page.ask("/experiments").json
    assert said["token"] and said["read_only"] is None
    public = Page(page.logdir, bind_all=True)
    for environ, reason in (
        ({"HTTP_HOST": "box:6006", "REMOTE_ADDR": "10.0.0.7"}, "opened as box"),
        ({"REMOTE_ADDR": "10.0.0.7"}, "on another machine"),
        ({"test.uid": 4242}, "another user of this machine (4242)"),
    ):
        said = public.ask("/experiments", environ=environ).json
        assert "token" not in said and reason in said["read_only"]
    assert public.ask("/experiments").json["token"]  # this machine, this user, loopback: whatever else is served


def test_the_key_lets_its_user_in_from_elsewhere(page: Page) -> None:
    far = {"HTTP_HOST": "box:6006", "REMOTE_ADDR": "10.0.0.7"}
    public = Page(page.logdir, bind_all=True)
    public.ask("/experiments", environ=far)
    file = public.plugin._guard.key_file
    assert file.stat().st_mode & 0o777 == 0o600
    key = {"HTTP_X_RFFLOW_KEY": file.read_text().strip()}
    assert public.ask("/experiments", environ={**far, **key}).json["token"]
    assert public.post("/op", OP, host="box:6006", environ={**far, **key}).status_code == 200
    assert public.post("/op", OP, host="box:6006", environ={**far, "HTTP_X_RFFLOW_KEY": "x" * 43}).status_code == 403
    assert public.post("/op", OP, environ={**far, **key, "HTTP_ORIGIN": "http://evil.test"}).status_code == 403
    file.chmod(0o644)  # others could have read it
    assert public.post("/op", OP, host="box:6006", environ={**far, **key}).status_code == 403


def test_whose_connection_it_is_the_system_tells() -> None:
    seen: list[int | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address, port = self.client_address[:2]
            environ = {"REMOTE_ADDR": address, "REMOTE_PORT": port, "SERVER_PORT": self.server.server_address[1]}
            seen.append(peer_uid(environ))
            seen.append(peer_uid({**environ, "REMOTE_ADDR": "127.9.9.9"}))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/").close()
        server.shutdown()
    assert seen == [os.getuid(), None]


def test_a_token_is_each_servers_own() -> None:
    assert Guard().token != Guard().token and len(Guard().token) >= 32


def test_what_is_no_op_is_refused_in_a_sentence(page: Page) -> None:
    for body, said in (
        ({"experiment": "one", "op": {"op": "halt"}}, "Allowed: stop"),
        ({"experiment": "one", "op": None}, "An op is a mapping"),
        ({"experiment": "two", "op": OP["op"]}, "There is no 'two'"),
        ([], "no JSON object"),
    ):
        answer = page.post("/op", body)
        assert answer.status_code == 400 and said in answer.json["error"]
    assert not ops_in(page)
    assert json.loads(page.post("/op", "x" * 2_000_000).data)["error"].startswith("A request is")
