"""A server on loopback that misbehaves in the ways that servers do."""

from __future__ import annotations

import csv
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rfflow.config.quotas import host_of, read_quotas
from rfflow.errors import ConfigError
from rfflow.evals.items import paid_in
from rfflow.evals.quotas import Quotas
from rfflow.worker.evaluation.replies import Reply, calls
from tests.support.tiny import write_jsonl

pytest.importorskip("openai", reason="the extra `api` is not installed")


class Handler(BaseHTTPRequestHandler):
    """Answers with the last word of the question; some words make it do something else."""

    seen: Counter[str]

    def do_GET(self) -> None:
        if self.headers["authorization"] == "Bearer wrong":
            return self.reply(401, {"error": {"message": "no such key"}})
        self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in ("small", "judge")]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        word = body["messages"][-1]["content"].split()[-1].rstrip("?")
        Handler.seen[word] += 1
        is_first = Handler.seen[word] == 1
        if word == "busy" and is_first:
            return self.reply(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "20"})
        if word == "flaky" and is_first:
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "1"})
        if word == "late" and is_first:
            time.sleep(0.4)
        if word == "broken":
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "1"})
        if word == "wrong":
            return self.reply(400, {"error": {"message": "such a prompt is not answered"}})
        if word == "cut" and is_first:
            return self.send(200, b'{"choices": [{"mess', {})
        content, why = (None, "length") if word == "thinking" else (f"It is {word}", "stop")
        choice = {"index": 0, "finish_reason": why, "message": {"role": "assistant", "content": content}}
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
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path))
    Handler.seen = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


PRICE = {"input": 1e6, "output": 2e6}


def quotas(**given: Any) -> Quotas:
    return Quotas(read_quotas(given))


def make(url: str, quotas: Quotas | None = None, **given: Any) -> Any:
    from rfflow.worker.evaluation.server import ServerGenerator

    return ServerGenerator("small", quotas or Quotas(), base_url=url, attempts=2, **given)


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
    found = ask(make(url, quotas(prices={"small": PRICE})), "good", "busy", "flaky", "cut")
    assert {word: reply.text for word, reply in found.items()} == {
        word: f"It is {word}" for word in ("good", "busy", "flaky", "cut")
    }
    assert found["good"].usage == {"prompt_tokens": 7, "completion_tokens": 3} and found["good"].cost == 13
    assert Handler.seen == {"good": 1, "busy": 2, "flaky": 2, "cut": 2}
    late = ask(make(url, quotas(prices={"small": PRICE}), timeout=0.15), "late")["late"]
    assert (late.text, Handler.seen["late"]) == ("It is late", 2) and late.cost > 13, "it may have been paid for twice"
    assert found["flaky"].cost == 13, "what the server could not do it does not charge"
    assert found["cut"].cost > 13, "what nobody could read was answered, and may have been paid for"


def test_what_fails_for_good_is_missing_with_its_reason(url: str) -> None:
    found = ask(make(url, quotas(prices={"small": PRICE})), "broken", "wrong", "good", "thinking")
    assert found["thinking"].text is None and found["thinking"].cost == 13
    assert found["thinking"].error == "no text in the answer: finish_reason is 'length', and generator.max_tokens is 64"
    assert found["good"].text == "It is good"
    assert found["broken"].text is None and "InternalServerError (2 times)" in str(found["broken"].error)
    assert found["wrong"].text is None and "such a prompt is not answered" in str(found["wrong"].error)
    assert Handler.seen == {"good": 1, "broken": 2, "wrong": 1, "thinking": 1}, "it would be no better again"


def test_runs_that_ask_the_same_share_a_limiter(url: str) -> None:
    host = url.split("/")[2]
    shared = quotas(limits={"small": {"rpm": 600}, host: {"rpm": 60}})
    small = shared.limiter(host, "small")
    assert small.limit.rpm == 600 and shared.limiter("elsewhere", "small") is small
    assert (
        shared.limiter(host, "large") is shared.limiter(host, "larger") and shared.limiter(host, "large") is not small
    )
    assert shared.limiter("elsewhere", "large").limit.rpm is None
    assert make(url, shared)._limiter is make(url, shared)._limiter is small


def test_a_budget_holds_and_what_is_left_is_not_answered(url: str) -> None:
    """A request may cost 10 prompt tokens and 64 of an answer, 138 USD; it costs 13."""
    shared = quotas(limits={"small": {"usd": 200}}, prices={"small": PRICE})
    replies = calls(make(url, shared), concurrency=1)
    found: dict[int, Reply] = {}
    replies.begin({n: [{"role": "user", "content": "good?"}] for n in range(20)}, found.__setitem__)
    while replies.next():
        pass
    assert replies.paused is not None and replies.paused.startswith("limits.small.usd is 200, of which 65 are spent")
    assert len(found) == Handler.seen["good"] == 5 and sum(reply.cost for reply in found.values()) == 65
    replies.close()


def test_what_was_answered_is_not_asked_again(url: str) -> None:
    """In an experiment after it; but what failed is, and what differs in anything that is sent."""
    priced = quotas(prices={"small": PRICE})
    first = ask(make(url, priced, cache=True), "good", "broken")
    again = ask(make(url, priced, cache=True, timeout=5), "good", "broken")
    assert Handler.seen == {"good": 1, "broken": 4}
    assert (again["good"].text, again["good"].usage) == (first["good"].text, first["good"].usage)
    assert again["good"].latency == first["good"].latency
    assert [(reply["good"].is_kept, reply["good"].cost) for reply in (first, again)] == [(False, 13), (True, 0)]
    ask(make(url, cache=True, temperature=1.0), "good")
    ask(make(url), "good")
    assert Handler.seen["good"] == 3, "other arguments, and one that wants no kept answers"


def test_equal_questions_of_a_run_are_samples_of_their_own(url: str) -> None:
    assert len(ask(make(url, cache=True), "twice", "twice")) == 1  # by word; both were asked
    assert Handler.seen["twice"] == 2
    ask(make(url, cache=True), "twice", "twice", "twice")
    assert Handler.seen["twice"] == 3, "two are there, and the third is new"
    resumed, prompt = make(url, cache=True), [{"role": "user", "content": "What is twice?"}]
    resumed.remember([prompt] * 3)
    assert resumed.forecast([prompt]).requests == 1
    ask(resumed, "twice")
    assert Handler.seen["twice"] == 4, "three were answered before the process was killed"


def test_a_damaged_answer_is_asked_for_and_a_full_disk_costs_a_warning(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("RFFLOW_CACHE", str(tmp_path))
    ask(make(url, cache=True), "good")
    (file,) = (tmp_path / "answers").rglob("*.json")
    assert file.stat().st_mode & 0o077 == 0, "others have no business with it"
    file.write_text(file.read_text()[:20])
    assert ask(make(url, cache=True), "good")["good"].text == "It is good" and Handler.seen["good"] == 2

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rfflow.evals.kept_answers.os.replace", full)
    assert ask(make(url, cache=True), "new", "other")["new"].text == "It is new"
    assert len([line for line in caplog.messages if "no longer kept" in line and "No space left" in line]) == 1
    assert [path for path in (tmp_path / "answers").rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rpm": 500}, "generator.rpm is 500, and stands at the root: limits.small..."),
        ({"max_tokens": 0}, "generator.max_tokens is 0"),
        (
            {"url": "localhost:8000/v1"},
            "Allowed: an address with http:// or https://. Did you mean 'http://localhost:8000",
        ),
        ({"cache": "yes"}, "generator.cache is 'yes'. Allowed: true or false."),
        ({"cach": True}, "generator.cach is True, but chat.completions.create takes no 'cach'. Did you mean 'cache'"),
        (
            {"temprature": 0},
            "generator.temprature is 0, but chat.completions.create takes no",
        ),
        ({"quotas": {"limits": {"small": {"tpm": 20}}}}, "A request may take"),
        ({"quotas": {"limits": {"small": {"usd": 20}}}}, "limits.small.usd is 20, and prices does not say what small"),
        (
            {"quotas": {"limits": {"small": {"usd": 20}}, "prices": {"small": {"input": 1e6, "output": 2e6}}}},
            "A request may cost 1.4e+02 USD",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(url: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made = make(**{"url": url, **given, "quotas": quotas(**given.get("quotas", {}))})
        made.check([[{"role": "user", "content": "What?"}]], ["0"])
    assert said in str(refused.value)


def test_a_server_that_cannot_answer_is_refused_before_anything_is_sent(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfflow.worker.evaluation.server import ServerGenerator

    with pytest.raises(ConfigError, match=r"'smal', and .* has no such model\. Did you mean 'small'\?"):
        ServerGenerator("smal", Quotas(), base_url=url).check([], [])
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/v1 cannot be reached: .*generator.base_url="):
        make("http://127.0.0.1:9/v1").check([], [])
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ConfigError, match=r"refuses the key in OPENAI_API_KEY: .*no such key"):
        make(url).check([], [])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="wants a key in OPENAI_API_KEY"):
        ServerGenerator("small", Quotas())
    assert not Handler.seen


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_by_command(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rfflow import __main__ as cli

    monkeypatch.chdir(tmp_path)
    words = ["good", "busy", "flaky", "wrong", *"abcdefgh"]
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {word}?", "reference": word} for word in words])
    given = ["generator=openai", "generator.model=small", f"generator.base_url={url}", "metrics=qa", "chunks=3"]
    given += ["dataset=questions", "dataset.path=q.jsonl", "objective.metric=eval_contains", "limits.small.rpm=6000"]
    given += ["prices.small.input=1.0", "prices.small.output=2.0"]
    monkeypatch.setattr(sys, "argv", ["rfflow", "+recipe=prompts", "--multirun", "prompt=question,short", *given])
    cli.main()
    said = capsys.readouterr()
    assert "lack a score, and are counted as missing (eval_missing). The first: BadRequestError" in said.out + said.err
    (root,) = Path("outputs/prompts").iterdir()
    with (root / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["state"], run["eval_missing"]) for run in runs] == [("completed", "1.0")] * 2
    assert float(runs[0]["eval_cost"]) == pytest.approx(11 * 13e-6)
    with (root / "differences.csv").open() as file:
        (gap,) = csv.DictReader(file)
    assert (gap["run"], gap["against"], gap["questions"], gap["difference"]) == ("1", "0", "12", "0.0")


def words_for(url: str, questions: int, *more: str) -> list[str]:
    """Return the words of an experiment that asks so many questions, six and these again, which it finds here."""
    asked = [n % 6 for n in range(questions)]
    write_jsonl(Path("q.jsonl"), [{"question": f"What is {n}?", "reference": str(n)} for n in asked])
    given = ["generator=openai", "generator.model=small", f"generator.base_url={url}", "chunks=2"]
    given += ["dataset=questions", "dataset.path=q.jsonl", "objective.metric=eval_contains"]
    return ["+recipe=prompts", "--multirun", *given, *more]


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_budget_pauses_the_experiment_and_a_higher_one_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked twice, and what the first process has spent, or has had samples of, counts in the second."""
    from rfflow import __main__ as cli

    monkeypatch.chdir(tmp_path)
    given = ["prices.small={input: 1e6, output: 2e6}", "limits.small.usd=320", "hydra.sweep.dir=out"]
    given += ["generator.concurrency=2", "generator.cache=true", "prompt=question,short", "metrics=qa"]

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rfflow", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 1
        return " ".join(capsys.readouterr().err.split())

    said = call(*words_for(url, 12, *given))
    assert said.count("limits.small.usd is 320, of which") == 1 and "resume=out limits.small.usd=..." in said
    paid = sum(Handler.seen.values())
    assert 4 <= paid < 24 and paid * 13 <= 320
    said = call("resume=out", "limits.small.usd=320")
    assert "Paused" in said and sum(Handler.seen.values()) == paid, "there is nothing left"
    monkeypatch.setattr(sys, "argv", ["rfflow", "resume=out", "limits.small.usd=1000"])
    cli.main()
    assert sum(Handler.seen.values()) == 24
    with Path("out/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["state"], run["eval_missing"], run["eval_cost"]) for run in runs] == [
        ("completed", "0.0", "156.0")
    ] * 2


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_judge_has_a_budget_of_its_own_and_what_it_may_cost_is_said_before(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an answer has cost counts once, though its line is written again with each judge's score."""
    from rfflow import __main__ as cli

    monkeypatch.chdir(tmp_path)
    given = ["metrics=judged", "prompt=question", "generator.concurrency=1"]
    given += ["generator@metrics.judge.generator=openai", "metrics.judge.generator.model=judge"]
    given += [f"metrics.judge.generator.base_url={url}", "metrics.judge.prompt='Is {{ answer }} {{ reference }}?'"]
    given += ["prices.small={input: 1e6, output: 2e6}", "prices.judge={input: 1e6, output: 2e6}"]
    key = f"{host_of(url)}/judge"
    typed = key.replace(":", "\\:")
    given += [f"limits={{small: {{usd: 1000}}, {typed}: {{usd: 200}}}}", "metrics.judge.generator.concurrency=1"]
    monkeypatch.setattr(sys, "argv", ["rfflow", *words_for(url, 6, *given, "hydra.sweep.dir=out")])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr()
    said = " ".join(told.out.split())
    assert "HTTP Request" not in said + told.err
    assert "1 run asks servers 12 times: at most about" in said and "USD. Stop with Ctrl-C." in said, told
    assert f"Paused: limits.{key}.usd is 200" in told.err and "limits.small" not in told.err
    assert f"resume=out 'limits={{{typed}: {{usd: ...}}}}'" in " ".join(told.err.split()), (
        "as a shell and Hydra read it"
    )
    judged = sum(paid_in(Path("out/runs/0/items.jsonl")).values()) / 13
    monkeypatch.setattr(sys, "argv", ["rfflow", "resume=out", f"limits={{{typed}: {{usd: 400}}}}"])
    cli.main()
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 run asks servers {12 - judged:.0f} times" in said
    assert paid_in(Path("out/runs/0/items.jsonl")) == {"generator": 6 * 13, "metrics.judge": 6 * 13}
    assert sum(Handler.seen.values()) == 12


def test_what_nobody_has_a_price_for_is_forecast_in_tokens(url: str) -> None:
    from rfflow.runs.forecast import Forecast, told

    prompts = [[{"role": "user", "content": "What?"}]] * 3
    free, priced = make(url).forecast(prompts), make(url, quotas(prices={"small": PRICE})).forecast(prompts)
    assert free == Forecast(3, 3 * (9 + 64), 0.0, 3) and priced == Forecast(3, 3 * (9 + 64), 3 * (9 + 128.0), 0)
    assert told([Forecast()]) is None
    assert str(told([free])).endswith(
        "at most about 219 tokens; prices does not say what that costs. Stop with Ctrl-C."
    )
    assert "2 runs ask servers 6 times: at most about 438 tokens, 4.1e+02 USD besides 3 requests" in str(
        told([free, priced])
    )
    ask(make(url, cache=True), "good")
    kept = make(url, cache=True).forecast([[{"role": "user", "content": f"What is {word}?"}] for word in ("good", "x")])
    assert kept.requests == 1, "what is kept is not asked"


@pytest.mark.usefixtures("hydra_restore_singletons")
@pytest.mark.parametrize("word", ["limits.smal.rpm=500", "prices={smalll: {input: 1, output: 2}}"])
def test_a_name_that_is_nearly_a_models_is_refused_before_anything_is_asked(
    word: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the limit would hold for nobody, in silence."""
    from rfflow import __main__ as cli

    monkeypatch.chdir(tmp_path)
    other = ["prices={other: {input: 1, output: 2}}"] if word.startswith("limits") else []
    monkeypatch.setattr(sys, "argv", ["rfflow", *words_for(url, 6, "metrics=qa", "prompt=question", *other, word)])
    with pytest.raises(SystemExit):
        cli.main()
    said = " ".join(capsys.readouterr().err.split())
    assert f"is about nobody: the models that are asked are small at {host_of(url)}. Did you mean 'small'?" in said
    assert not Handler.seen


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("api.openai.con", "api.openai.com"),
        ("api.openai.com/gpt-4o-mimi", "api.openai.com/gpt-4o-mini"),
        ("gpt-4.1-mini", None),
        ("gpt-4o", None),
        ("claude", None),
    ],
)
def test_a_key_is_misspelt_where_it_is_nearly_a_name_with_the_same_digits(
    key: str, near: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other models of a family are not: a list of limits or prices may hold them all."""
    from rfflow.engine.money import Money

    asked = {"generator": ("api.openai.com", "gpt-4o-mini")}
    monkeypatch.setattr("rfflow.engine.money._asked", lambda run: asked)
    spec = SimpleNamespace(quotas=read_quotas({"limits": {key: {"rpm": 5}}}))
    money = Money(SimpleNamespace(runs=[None], spec=spec))  # type: ignore[arg-type]
    who = "the models that are asked are gpt-4o-mini at api.openai.com."
    if near is not None:
        with pytest.raises(ConfigError, match=re.escape(f"limits.{key} is about nobody: {who} Did you mean '{near}'")):
            money.check()
        return
    money.check()
    assert caplog.messages == [f"limits.{key} is about nobody who is asked so far: {who}"]
