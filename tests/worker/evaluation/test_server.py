"""A server on loopback that misbehaves in the ways that servers do."""

from __future__ import annotations

import csv
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.evals.limiter import Limiter
from rfflow.worker.evaluation.replies import Reply, calls
from tests.support.tiny import write_jsonl

pytest.importorskip("openai", reason="the extra `api` is not installed")


class Handler(BaseHTTPRequestHandler):
    """Answers with the last word of the question; some words make it do something else."""

    seen: Counter[str]

    def do_GET(self) -> None:
        if self.headers["authorization"] == "Bearer wrong":
            return self.reply(401, {"error": {"message": "no such key"}})
        self.reply(200, {"object": "list", "data": [{"id": "small", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        word = body["messages"][-1]["content"].split()[-1].rstrip("?")
        Handler.seen[word] += 1
        is_first = Handler.seen[word] == 1
        if word == "busy" and is_first:
            return self.reply(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "20"})
        if word == "flaky" and is_first:
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "1"})
        if word == "broken":
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "1"})
        if word == "wrong":
            return self.reply(400, {"error": {"message": "such a prompt is not answered"}})
        if word == "cut" and is_first:
            return self.send(200, b'{"choices": [{"mess', {})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"It is {word}"}}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        self.reply(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "small",
                "choices": [choice],
                "usage": usage,
            },
        )

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), headers or {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def make(url: str, limiters: dict[str, Limiter] | None = None, **given: Any) -> Any:
    from rfflow.worker.evaluation.server import ServerGenerator

    return ServerGenerator("small", {} if limiters is None else limiters, base_url=url, attempts=2, **given)


def ask(generator: Any, *words: str) -> dict[str, Reply]:
    replies = calls(generator, concurrency=4)
    found: dict[str, Reply] = {}
    asked = [[{"role": "user", "content": f"What is {word}?"}] for word in words]
    replies.begin(dict(enumerate(asked)), lambda position, reply: found.__setitem__(words[position], reply))
    while replies.next():
        pass
    replies.close()
    return found


def test_answers_come_and_what_fails_for_a_while_is_sent_again(url: str) -> None:
    found = ask(make(url, prices={"input": 1e6, "output": 2e6}), "good", "busy", "flaky", "cut")
    assert {word: reply.text for word, reply in found.items()} == {
        word: f"It is {word}" for word in ("good", "busy", "flaky", "cut")
    }
    assert found["good"].usage == {"prompt_tokens": 7, "completion_tokens": 3} and found["good"].cost == 13
    assert Handler.seen == {"good": 1, "busy": 2, "flaky": 2, "cut": 2}


def test_what_fails_for_good_is_missing_with_its_reason(url: str) -> None:
    found = ask(make(url), "broken", "wrong", "good")
    assert found["good"].text == "It is good"
    assert found["broken"].text is None and "InternalServerError (2 times)" in str(found["broken"].error)
    assert found["wrong"].text is None and "such a prompt is not answered" in str(found["wrong"].error)
    assert Handler.seen == {"good": 1, "broken": 2, "wrong": 1}, "a request that is wrong is not sent again"


def test_runs_that_ask_the_same_share_a_limiter(url: str) -> None:
    limiters: dict[str, Limiter] = {}
    make(url, limiters, rpm=600), make(url, limiters, rpm=600), make(url, limiters, rpm=60)
    assert len(limiters) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rpm": 0}, "generator.rpm is 0"),
        ({"prices": {"inptu": 1}}, "generator.prices.inptu is 1"),
        (
            {"temprature": 0},
            "generator.temprature is 0, but chat.completions.create takes no",
        ),
        ({"tpm": 20}, "A request may take"),
    ],
)
def test_settings_that_cannot_be_are_refused(url: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make(url, **given).check([[{"role": "user", "content": "What?"}]], ["0"])
    assert said in str(refused.value)


def test_a_server_that_cannot_answer_is_refused_before_anything_is_sent(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfflow.worker.evaluation.server import ServerGenerator

    with pytest.raises(ConfigError, match=r"'smal', and .* has no such model\. Did you mean 'small'\?"):
        ServerGenerator("smal", {}, base_url=url).check([], [])
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/v1 cannot be reached"):
        make("http://127.0.0.1:9/v1").check([], [])
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ConfigError, match="refuses the key"):
        make(url).check([], [])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="wants a key in OPENAI_API_KEY"):
        ServerGenerator("small", {})
    assert not Handler.seen


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_by_command(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rfflow import __main__ as cli

    monkeypatch.chdir(tmp_path)
    words = ["good", "busy", "flaky", "wrong", *"abcdefgh"]
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {word}?", "reference": word} for word in words])
    given = ["generator=openai", "generator.model=small", f"generator.base_url={url}", "metrics=qa", "chunks=3"]
    given += ["dataset=questions", "dataset.path=q.jsonl", "objective.metric=eval_contains", "generator.rpm=6000"]
    given += ["generator.prices.input=1.0", "generator.prices.output=2.0"]
    monkeypatch.setattr(sys, "argv", ["rfflow", "+recipe=prompts", "--multirun", "prompt=question,short", *given])
    cli.main()
    (root,) = Path("outputs/prompts").iterdir()
    with (root / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["state"], run["eval_missing"]) for run in runs] == [("completed", "1.0")] * 2
    assert float(runs[0]["eval_cost"]) == pytest.approx(11 * 13e-6)
    with (root / "differences.csv").open() as file:
        (gap,) = csv.DictReader(file)
    assert (gap["run"], gap["against"], gap["questions"], gap["difference"]) == ("1", "0", "12", "0.0")
