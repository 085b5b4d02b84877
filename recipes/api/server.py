"""A stand-in for a server that costs money: `python recipes/api/server.py` answers sums, and sometimes says no.

It speaks as OpenAI's does, of two models. `small` adds up the numbers of a problem, whatever it asks; `large` looks for
words that mean less of something, or so many of each. Nothing here is a language model: it is there to try limits,
budgets and what a failure costs before anything is paid.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RETRY_AFTER = "1"
"""Seconds that whoever was refused is told to wait."""
MODELS = ("small", "large")
LESS = re.compile(r"\b(left|fewer|less|remain\w*|gave|lost|sold|ate|spent|used|difference|more .* than)\b")
EACH = re.compile(r"\b(each|every|per|times|apiece)\b")


def answer(model: str, problem: str) -> str:
    """Return what the model says to a problem."""
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", problem)]
    if not numbers:
        return "There are no numbers."
    found = sum(numbers)
    if model == "large" and LESS.search(problem) is not None:
        found = 2 * max(numbers) - sum(numbers)
    elif model == "large" and EACH.search(problem) is not None:
        found = math.prod(numbers)
    return f"The answer is {found:g}"


class Server(ThreadingHTTPServer):
    """Listens on loopback.

    Args:
        port: 0 is any.
        latency: seconds for an answer.
        refuse_every: of so many requests the last is refused with a 429; 0 refuses none.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, latency: float = 0.2, refuse_every: int = 20):
        super().__init__(("127.0.0.1", port), Handler)
        self.latency = latency
        self._refuse_every = refuse_every
        self._lock = threading.Lock()
        self._requests = 0

    @property
    def address(self) -> str:
        """What to say as ``generator.base_url``."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def is_refused(self) -> bool:
        """Count a request; whether it is one of those that are refused."""
        with self._lock:
            self._requests += 1
            return bool(self._refuse_every) and self._requests % self._refuse_every == 0


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        """List the models."""
        self._send(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]})

    def do_POST(self) -> None:
        """Complete a chat."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.is_refused():
            self._send(429, {"error": {"message": "too many requests"}}, {"retry-after": RETRY_AFTER})
            return
        time.sleep(self.server.latency)
        text = answer(body["model"], body["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": _tokens(body["messages"]), "completion_tokens": len(text.split())}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        about = {"id": "stand-in", "object": "chat.completion", "created": int(time.time()), "model": body["model"]}
        self._send(200, {**about, "choices": [choice], "usage": {**usage, "total_tokens": sum(usage.values())}})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""

    def _send(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(text)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


def _tokens(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(message["content"].split()) + 4 for message in messages)


def main() -> None:
    """Listen until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8077)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds for an answer")
    parser.add_argument("--refuse-every", type=int, default=20, help="a 429 after so many requests; 0 for none")
    given = parser.parse_args()
    try:
        server = Server(given.port, given.latency, given.refuse_every)
    except OSError as error:
        parser.error(f"--port {given.port} cannot be had: {error.strerror}. Give another; 0 is any that is free.")
    print(f"generator.base_url={server.address}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
