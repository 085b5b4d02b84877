"""A real ``mlflow server`` on loopback, and a stub of one that refuses whoever asks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


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
