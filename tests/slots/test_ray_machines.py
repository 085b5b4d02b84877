"""Clusters that are started as people start them, by ``ray start``: their tokens, and a machine that is gone.

All are slow: a machine of Ray's takes seconds to start, and so does each process that joins it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import rfflow.slots.ray
from rfflow.config.spec import ExperimentSpec
from rfflow.slots.cluster import join_cluster
from rfflow.slots.ray import RaySlots
from tests.slots.test_processes import CHUNKS, Watch, ends, expected, states
from tests.support.counting import CountingWorker
from tests.support.toy import toy_engine, toy_spec

__all__ = ["expected"]

pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: nothing about clusters is tested. make install brings it.")
pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef" * 4
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "error", "RAY_worker_niceness": "0"}
JOIN = """
import sys
from pathlib import Path
from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError
from rfflow.slots.cluster import join_cluster
try:
    print(join_cluster(ExperimentSpec(name="x", cluster=sys.argv[1]), Path(sys.argv[2])).count, "devices")
except ConfigError as error:
    print("refused:", error)
"""


class Machine:
    """One machine of a cluster: ``ray start --block``, which ends with all that it has started."""

    def __init__(self, environ: Mapping[str, str], *arguments: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0",
             "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", *arguments],
            env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        import psutil

        everybody = []
        with contextlib.suppress(psutil.Error):
            everybody = psutil.Process(self._process.pid).children(True)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        for one in everybody:
            with contextlib.suppress(psutil.Error):
                one.kill()


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.05)


def answers(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """The environment of the machines: with a token, and a home in which none is kept."""
    home = tempfile.mkdtemp(prefix="ray")  # Ray's sockets lie in it, whose paths must be short
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield {**plain, **QUIET, "HOME": home, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def address(environ: dict[str, str]) -> Iterator[str]:
    """The head of a cluster that asks for a token."""
    with started(environ, environ["HOME"]) as there:
        yield there


@contextlib.contextmanager
def started(environ: Mapping[str, str], folder: str) -> Iterator[str]:
    """Start the head of a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = Machine(environ, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    try:
        wait_until(lambda: answers(f"127.0.0.1:{port}") or not head.is_running)
        if not head.is_running:  # a machine without shared memory, say
            pytest.skip("NO RAY CLUSTER CAN BE STARTED HERE, so none is tested")
        yield f"127.0.0.1:{port}"
    finally:
        head.end()


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (TOKEN, "1 devices"),
        (
            "f" * 64,
            "refused: The Ray cluster {} refuses the token of this process. What all machines of a cluster share",
        ),
        (None, "What all machines of a cluster share is the file ~/.ray/auth_token, or the variable RAY_AUTH_TOKEN."),
    ],
    ids=["its own", "another", "none"],
)
def test_a_cluster_lets_in_who_has_its_token(
    address: str, environ: dict[str, str], token: str | None, words: str, tmp_path: Path
) -> None:
    """And who has another, or none, is told where Ray looks for it."""
    given = {name: value for name, value in environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    if token is not None:
        given["RAY_AUTH_TOKEN"] = token
    asked = [sys.executable, "-c", JOIN, address, str(tmp_path)]
    said = subprocess.run(asked, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert words.format(address) in said.stdout, said.stdout + said.stderr
    assert (token == TOKEN) != ("refused:" in said.stdout)


def test_a_machine_that_is_gone_costs_nothing_but_time(
    address: str, environ: dict[str, str], tmp_path: Path, expected: list[str]
) -> None:
    """Its raylet is killed in the middle: its runs go on from their last boundaries on the machine that is left."""
    other = Machine(environ, f"--address={address}")
    try:
        asked = [sys.executable, "-c", LOSE, address, str(tmp_path / "x"), str(other.pid)]
        did = subprocess.run(asked, env=environ, capture_output=True, text=True, timeout=240, check=False)
    finally:
        other.end()
    assert did.returncode == 0, did.stderr
    found = json.loads(did.stdout.splitlines()[-1])
    assert found["states"] == ["completed"] * 4 and ends(tmp_path / "x") == expected
    assert sorted(found["told"]) == [[run, chunk] for run in range(4) for chunk in range(1, CHUNKS + 1)]
    told = r"The worker of slot \d is lost.*: its actor (is gone, or the machine|died)"
    assert re.search(told, did.stderr), did.stderr
    assert found["before"] == [0, 1] and len(found["after"]) == 1, "both machines were to train, and then one"


def test_a_cluster_without_tokens_is_shown_none(environ: dict[str, str], tmp_path: Path) -> None:
    """Although one lies here: it would let this process in, and take every actor from it at once."""
    folder = tempfile.mkdtemp(prefix="ray")
    try:
        with started({**environ, "RAY_AUTH_MODE": "disabled"}, folder) as there:
            given = {name: value for name, value in environ.items() if name != "RAY_AUTH_MODE"}
            asked = [sys.executable, "-c", BEGIN, there, str(tmp_path)]
            did = subprocess.run(asked, env=given, capture_output=True, text=True, timeout=120, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert did.stdout.splitlines()[-1:] == ["Up"], did.stdout + did.stderr


BEGIN = """
import sys
from pathlib import Path
import ray  # as an app may that imports more than it needs
from rfflow.config.spec import ExperimentSpec
from rfflow.runs.events import GiveUp
from rfflow.slots.cluster import join_cluster
from rfflow.slots.ray import RaySlots
from tests.support.counting import CountingWorker
spec = ExperimentSpec(name="x", cluster=sys.argv[1])
slots = RaySlots(spec, join_cluster(spec, Path(sys.argv[2])), CountingWorker)
slots.send(0, GiveUp(0))
heard = slots.hear(60)
slots.close()
print(heard and type(heard.event).__name__)
"""


LOSE = (
    "import sys, tests.slots.test_ray_machines as here; here.lose_a_machine(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
)


def lose_a_machine(address: str, root: str, other: int) -> None:
    """Train on two machines, kill one in the middle, and print what came of it; in a process that has no Ray yet.

    How a process shows its token to a cluster is settled when Ray is imported there.
    """
    import psutil
    import ray

    def lose_it() -> None:
        places.append([chunk.slot for run in engine.experiment.runs for chunk in run.chunks])
        rfflow.slots.ray._START = 1.0  # where it stood there will be no room again
        kill_raylet(other)
        wait_until(lambda: sum(psutil.pid_exists(slots.pid(slot) or 0) for slot in (0, 1)) == 1)

    logging.basicConfig(level=logging.WARNING)
    places: list[list[int]] = []
    spec = ExperimentSpec(name="x", cluster=address, devices=2)
    ray.init(address=address, namespace="rfflow", log_to_driver=False, logging_level=logging.ERROR)
    wait_until(lambda: ray.cluster_resources().get("CPU") == 2)
    slots = RaySlots(spec, join_cluster(spec, Path(root)), CountingWorker)
    watch = Watch(6, lose_it)
    engine = toy_engine(Path(root), [toy_spec(CHUNKS)] * 4, [watch], make_slots=lambda spec: slots)
    engine.run()
    engine.close()
    last = [run.chunks[-1].slot for run in engine.experiment.runs]
    named = [state.value for state in states(engine)]
    print(
        json.dumps(
            {"states": named, "told": watch.chunks, "before": sorted(set(places[0])), "after": sorted(set(last))}
        )
    )


def kill_raylet(pid: int) -> None:
    """Kill what stands for the machine that this process has started, as its loss would."""
    import psutil

    raylets = [one for one in psutil.Process(pid).children(True) if one.name() == "raylet"]
    assert len(raylets) == 1
    raylets[0].kill()
