"""Candidates that ask a server take their shard together: who fails, stops or is paused leaves the others alone."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import write_jsonl

pytest.importorskip("openai", reason="the extra `api` is not installed")
pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

QUESTIONS = 12
CODE = '''
def leaving(answer):
    """A metric of a user's that ends the run of one model."""
    if "three" in answer:
        raise SystemExit("enough")
    return 1.0
'''


class Server(ThreadingHTTPServer):
    """Answers nobody before so many ask at a time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, at_a_time: int = 1):
        super().__init__(("127.0.0.1", 0), Handler)
        self.barrier = threading.Barrier(at_a_time, timeout=20)
        self.seen: Counter[str] = Counter()
        """Requests, by model."""
        self.at: dict[int, Callable[[], None]] = {}
        """What is done when so many requests have come."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": name, "object": "model"} for name in ("one", "two", "three")]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen[body["model"]] += 1
            act = self.server.at.pop(self.server.seen.total(), None)
        if act is not None:
            act()
        if not self.server.barrier.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.server.barrier.wait()
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": f"4, says {body['model']}"},
        }
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        made = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        self.reply({**made, "choices": [choice], "usage": usage})

    def reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Server]]:
    """Returns what starts a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaver", raising=False)
    Path("leaver.py").write_text(CODE)
    write_jsonl(
        tmp_path / "questions.jsonl", [{"question": f"What is {n}?", "reference": "4"} for n in range(QUESTIONS)]
    )
    servers: list[Server] = []

    def start(at_a_time: int) -> Server:
        servers.append(Server(at_a_time))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def evaluate(server: Server, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, str]]:
    """Ask three models, two questions at a time each, in two shards; return the table."""
    from rfflow import __main__ as cli

    own = ["+recipe=api", "--multirun", f"generator.base_url={server.url}", "generator.concurrency=2", "chunks=2"]
    own += ["control.idle_timeout=20"]
    data = ["dataset=questions", "dataset.path=questions.jsonl", "prompt=question", "metrics=qa"]
    sweep = [] if any(word.startswith("generator.model=") for word in words) else ["generator.model=one,two,three"]
    monkeypatch.setattr(sys, "argv", ["rfflow", *own, *data, *sweep, "objective.metric=eval_contains", *words])
    cli.main()
    return table()


def table() -> list[dict[str, str]]:
    with (root() / "runs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def root() -> Path:
    (found,) = Path("outputs/api").iterdir()
    return found


def answered(run: int) -> int:
    return len((root() / f"runs/{run}/items.jsonl").read_text(encoding="utf-8").splitlines())


def test_as_many_requests_are_on_their_way_as_all_of_them_allow(
    serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers only while six ask: no run is through before the others have come as far."""
    server = serve(6)
    runs = evaluate(server, monkeypatch)
    assert not server.barrier.broken
    assert [(run["state"], run["step"], run["eval_contains"]) for run in runs] == [("completed", "12", "1.0")] * 3
    assert server.seen == {"one": 12, "two": 12, "three": 12} and [answered(run) for run in range(3)] == [12] * 3
    chunks = json.loads((root() / "timeline.json").read_text())["chunks"]
    first, second = ([each for each in chunks if each["chunk"] == number] for number in (1, 2))
    assert max(each["started"] for each in first) < min(each["ended"] for each in first), "each has its own seconds"
    assert max(each["ended"] for each in first) <= min(each["started"] for each in second)


def test_a_judge_that_is_a_server_is_asked_by_all_of_them_at_a_time(
    serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(4)
    judge = ["metrics=judged", "metrics.judge.generator.model=three", "metrics.judge.generator.concurrency=2"]
    judge += [
        f"metrics.judge.generator.base_url={server.url}",
        "metrics.judge.prompt='{{ answer }} Score: {{ question }}'",
    ]
    monkeypatch.setattr("rfflow.evals.judging.Judge.score", lambda self, text: 1.0)
    runs = evaluate(server, monkeypatch, "generator.model=one,two", *judge)
    assert not server.barrier.broken
    assert [(run["state"], run["eval_judge"]) for run in runs] == [("completed", "1.0")] * 2
    assert server.seen == {"one": 12, "two": 12, "three": 24}


def test_one_that_fails_and_one_that_is_stopped_leave_the_others_as_they_are(
    serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(1)

    def give(name: str, op: str) -> Callable[[], None]:
        def drop() -> None:
            aside = root() / "control" / f".{name}"
            aside.write_text(op)
            os.utime(aside, (1e9, 1e9))  # put in place long after it was written: it is taken at once
            aside.rename(root() / "control" / f"{name}.yaml")

        return drop

    # The first shard takes 6 questions of each; of the third run, which fails, a few.
    server.at = {4: give("010-stop", "{op: stop, run: 1}"), 17: give("020-resume", "{op: resume, run: 1}")}
    with pytest.raises(SystemExit):  # as one has failed
        evaluate(server, monkeypatch, "+metrics.mine=leaver.leaving")
    runs = table()
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "12")] * 2 + [("failed", "0")]
    assert server.seen["one"] == server.seen["two"] == 12 and server.seen["three"] <= 4
    ops = [json.loads(line) for line in (root() / "ops.jsonl").read_text().splitlines()]
    assert [(op["op"], op["run"], op["outcome"], op["chunk"]) for op in ops] == [
        ("stop", 1, "applied", 1),
        ("resume", 1, "applied", 1),
    ]
    chunks = json.loads((root() / "timeline.json").read_text())["chunks"]
    ended = {(each["run"], each["chunk"]): each["ended"] for each in chunks}
    assert ended[1, 2] > ended[0, 2], "it goes on when the other is through"


def test_all_are_left_together_by_ctrl_c_and_go_on(
    serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is on its way still arrives; nothing is asked twice."""
    server = serve(1)
    server.at = {7: lambda: os.kill(os.getpid(), signal.SIGINT)}
    with pytest.raises(SystemExit):
        evaluate(server, monkeypatch, "generator.model=one,two")
    assert "Interrupted; everything is saved" in capsys.readouterr().err
    there = [answered(run) for run in (0, 1)]
    assert 7 <= sum(there) == server.seen.total() < 12
    from rfflow import __main__ as cli

    monkeypatch.setattr(sys, "argv", ["rfflow", f"resume={root()}"])
    cli.main()
    assert [(run["state"], run["step"]) for run in table()] == [("completed", "12")] * 2
    assert server.seen == {"one": 12, "two": 12}


def test_one_without_money_waits_while_the_other_goes_on(
    serve: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(1)
    cost = ["prices.two={input: 1e6, output: 1e6}", "limits.two.usd=60", "generator.max_tokens=16"]
    with pytest.raises(SystemExit):
        evaluate(server, monkeypatch, "generator.model=one,two", *cost)
    assert "Paused: limits.two.usd is 60, of which " in capsys.readouterr().err
    runs = table()
    assert [run["state"] for run in runs] == ["completed", "running"]
    there = answered(1)
    assert 0 < there < QUESTIONS and server.seen["two"] == there
    from rfflow import __main__ as cli

    monkeypatch.setattr(sys, "argv", ["rfflow", f"resume={root()}", "limits.two.usd=2000"])
    cli.main()
    assert [run["state"] for run in table()] == ["completed"] * 2
    assert server.seen == {"one": 12, "two": 12}, "nothing is asked twice"
