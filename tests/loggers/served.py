"""Servers on loopback: MLflow's own, one that refuses whoever asks, and a stand-in for W&B's."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def free_port() -> int:
    """Return a port on which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A process of MLflow's own."""

    def __init__(self, folder: Path):
        self.uri = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        words = ("--port", self.uri.rpartition(":")[2], "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db")
        with (self._folder / "server.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words, "--artifacts-destination", "kept"],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
                raise RuntimeError((self._folder / "server.txt").read_text())

    def stop(self) -> None:
        """End it with its workers, as a machine does that goes down."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False


@contextlib.contextmanager
def refusing(status: int) -> Iterator[str]:
    """Answer every request with a status, and give the address."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>go away</html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class WandbStandIn:
    """As much of a W&B server as its package wants to hear, to keep runs for; it says what it was given."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, Any]] = []
        """Paths, or the names of mutations, and what came with them."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_WandbHandler, self))
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def history(self, run: str) -> list[dict[str, Any]]:
        """Return what has been logged of a run, by the end of its id."""
        found = []
        for path, body in self.posts:
            if path.endswith(f"-{run}/file_stream"):
                found += (body.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
        return [json.loads(line) for line in found]

    def stop(self) -> None:
        """Be gone, as a machine that goes down."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _WandbHandler(BaseHTTPRequestHandler):
    def __init__(self, stand_in: WandbStandIn, *args: Any):
        self._stand_in = stand_in
        super().__init__(*args)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        body = json.loads(raw) if raw[:1] == b"{" else {}
        given = body.get("variables") or {}
        if found := re.match(r"\s*mutation\s+(\w+)", body.get("query", "")):
            self._stand_in.posts.append((found[1], given))
        else:
            self._stand_in.posts.append((self.path, body))
        self._say(self._answer(body.get("query", ""), given))

    def _answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            project = {"id": "p", "name": given.get("project") or "sft", "entity": {"id": "e", "name": "me"}}
            run = {"id": given.get("name"), "name": given.get("name"), "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": run, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self._stand_in.uri}/files/{name}"} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        if "viewer" in query:
            return {"data": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}}
        return {"data": {"model": {"bucket": None}, "project": None, "serverInfo": {}}}

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._say({})

    def _say(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass
