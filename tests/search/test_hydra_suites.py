"""Hydra's own acceptance suites with our sweeper, over our launcher and over Hydra's basic one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from types import SimpleNamespace

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

pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions")  # the suites' applications are older


@pytest.fixture(params=["rfflow", "basic"])
def launcher_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def older() -> Iterator[None]:
    """Let Hydra be as old as the suites expect."""
    ours = VersionBase.instance().version_base
    VersionBase.instance().version_base = Version("1.1")
    yield
    VersionBase.instance().version_base = ours


class TestSweeper(LauncherTestSuite):
    @pytest.fixture
    def overrides(self) -> list[str]:
        return ["hydra/sweeper=rfflow"]


class TestBatches(BatchedSweeperTestSuite):
    @pytest.fixture
    def overrides(self) -> list[str]:
        return ["hydra/sweeper=rfflow", "hydra.sweeper.max_batch_size=2"]


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags",
    [
        ({"defaults": [{"override hydra/launcher": name}, {"override hydra/sweeper": "rfflow"}]}, ["-m"])
        for name in ("rfflow", "basic")
    ],
)
class TestIntegration(IntegrationTestSuite):
    @pytest.fixture(autouse=True)
    def in_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run the small applications in this process: a process each takes a second."""
        Plugins.instance()

        def check_call(cmd: list[str], env: dict[str, str]) -> None:
            monkeypatch.setattr(sys, "argv", [str(word) for word in cmd[1:]])
            runpy.run_path(sys.argv[0], run_name="__main__")

        monkeypatch.setattr(test_utils, "subprocess", SimpleNamespace(check_call=check_call))
