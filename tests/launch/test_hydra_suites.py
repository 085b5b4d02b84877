"""Hydra's own acceptance suites, once with jobs that return a number and once with jobs that return a run."""

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils import test_utils
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase
from packaging.version import Version

from rfflow.launch import start
from tests.launch.test_launcher import RUN
from tests.support.stub_engine import StubEngine

pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions")  # the suites' applications are older

RAISES = ("test_not_sweeping_hydra_overrides", "test_sweep_1_job_strict_and_bad_key")


@pytest.fixture
def launcher_name() -> str:
    return "rfflow"


@pytest.fixture(params=["plain", "runs"], autouse=True)
def job(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the suites' functions return what they return, or a run in its place."""
    ours = VersionBase.instance().version_base
    VersionBase.instance().version_base = Version("1.1")  # what the suites were written for
    engines: list[StubEngine] = []

    def make_engine(*args: Any) -> StubEngine:
        engines.append(StubEngine(*args))
        return engines[-1]

    monkeypatch.setattr(start, "make_engine", make_engine)
    if request.param == "runs":
        call, main = test_utils.SweepTaskFunction.__call__, hydra.main
        monkeypatch.setattr(test_utils.SweepTaskFunction, "__call__", _returning_a_run(call))
        monkeypatch.setattr(hydra, "main", lambda **kwargs: lambda task: main(**kwargs)(_returning_a_run(task)))
    yield
    VersionBase.instance().version_base = ours
    name = request.node.originalname
    if request.param == "plain" or name in RAISES or name == "test_sweep_with_custom_resolver":
        assert not engines
    else:
        assert {len(engine.runs) for engine in engines} <= {1, 2, 6}, "all batches of a sweep go to one engine"
        assert all(engine.closed for engine in engines)
        assert engines


def _returning_a_run(task: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(task)
    def wrapped(*args: Any) -> Any:
        value = task(*args)
        return RUN if value in (None, 100) else value

    return wrapped


class TestLauncher(LauncherTestSuite):
    """One batch."""

    @pytest.fixture
    def overrides(self) -> list[str]:
        return []


class TestBatches(BatchedSweeperTestSuite):
    """Several calls of ``launch``."""

    @pytest.fixture
    def overrides(self) -> list[str]:
        return ["hydra.sweeper.max_batch_size=2"]


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags",
    [({"defaults": [{"override hydra/launcher": "rfflow"}]}, ["-m"])],
)
class TestIntegration(IntegrationTestSuite):
    """Small applications of their own, run in this process: a process each takes a second."""

    @pytest.fixture(autouse=True)
    def in_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Plugins.instance()

        def check_call(cmd: list[str], env: dict[str, str]) -> None:
            monkeypatch.setattr(sys, "argv", [str(word) for word in cmd[1:]])
            runpy.run_path(sys.argv[0], run_name="__main__")

        monkeypatch.setattr(test_utils, "subprocess", SimpleNamespace(check_call=check_call))
