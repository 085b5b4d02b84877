"""Whatever is asked of the tab's routes gets an answer, and writes no op that is none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rfflow.control.ops import parse
from tests.dashboard.made import composed, held
from tests.dashboard.test_plugin import Page

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")
WORDS = st.sampled_from(
    [
        "one",
        "stop",
        "clone",
        "resume",
        "all",
        "best",
        "0-3",
        "lr=1",
        "lr=1,2",
        "peft.r=",
        "",
        "../..",
        "a\0b",
        "\ud800",
        "9" * 5000,
    ]
)
NUMBERS = st.sampled_from([0, 1, -1, 10**30, 1e308, float("inf"), float("nan"), True])
ANYTHING = st.recursive(
    st.none() | WORDS | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OP = st.fixed_dictionaries(
    {"op": ANYTHING}, optional=dict.fromkeys(("run", "overrides", "warm_start", "where", "until"), ANYTHING)
)
BODY = st.fixed_dictionaries(
    {"experiment": st.just("one") | ANYTHING},
    optional={
        "op": OP | ANYTHING,
        "run": NUMBERS | ANYTHING,
        "runs": st.lists(NUMBERS | ANYTHING, max_size=2) | ANYTHING,
        "overrides": st.lists(WORDS | ANYTHING, max_size=2) | ANYTHING,
        "word": WORDS | ANYTHING,
        "warm_start": ANYTHING,
        "page": ANYTHING,
    },
)
QUERY = st.fixed_dictionaries(
    {"experiment": st.just("one") | WORDS | st.text(max_size=5)},
    optional=dict.fromkeys(("run", "runs", "since", "metrics", "tag", "file"), WORDS | st.text(max_size=5)),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    root = composed(tmp_path_factory.mktemp("anything") / "one")
    with pytest.MonkeyPatch.context() as patch, held(root):
        patch.setattr("rfflow.dashboard.guard.peer_uid", lambda environ: os.getuid())
        patch.setattr("rfflow.dashboard.plugin._AT_ONCE", 0.0)
        yield Page(root)


@settings(max_examples=150, deadline=None)
@given(query=QUERY, route=st.sampled_from(["/experiments", "/state", "/run", "/generations", "/answer"]))
def test_any_question_is_answered(page: Page, query: dict[str, str], route: str) -> None:
    answer = page.ask(route, **{key: value.encode("utf-8", "replace").decode() for key, value in query.items()})
    assert answer.status_code in (200, 400) and isinstance(answer.json, dict)
    assert answer.status_code == 200 or answer.json["error"]


@settings(max_examples=150, deadline=None)
@given(body=BODY, route=st.sampled_from(["/op", "/op", "/check", "/complete"]))
def test_any_request_is_answered_and_only_ops_are_written(page: Page, body: Any, route: str) -> None:
    control: Path = page.logdir / "control"
    answer = page.post(route, body)
    assert answer.status_code in (200, 400) and isinstance(answer.json, dict)
    assert answer.status_code == 200 or answer.json["error"]
    for path in control.glob("*-tab.yaml"):
        parse(yaml.safe_load(path.read_text()))
        path.unlink()
    assert {path.name for path in page.logdir.iterdir()} >= {"control", "runs"}


def test_what_is_nested_without_end_is_refused(page: Page) -> None:
    for body in (b"[" * 100_000, b'{"experiment": "one", "op": ' + b'{"op": ' * 50_000):
        from werkzeug.test import Client

        answer = Client(page._apps["/op"]).post(
            "/data/plugin/rfflow/op",
            base_url="http://localhost:6006",
            data=body,
            content_type="application/json",
            headers={"X-Rfflow": page.plugin._guard.token},
            environ_overrides={"REMOTE_ADDR": "127.0.0.1"},
        )
        assert answer.status_code == 400 and json.loads(answer.data)["error"]
