"""A Ray cluster: what is said before anything trains there, and that it trains as processes of this machine do."""

from __future__ import annotations

import builtins
import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from omegaconf import OmegaConf

from rfflow.checkpointing.provenance import versions
from rfflow.config.experiment import read_experiment
from rfflow.config.spec import ExperimentSpec
from rfflow.errors import ConfigError
from rfflow.slots.cluster import Cluster, _showing_token, check_machines, describe_machine, join_cluster, plan
from rfflow.slots.ray import RaySlots
from tests.slots.test_processes import CHUNKS, Watch, ends, expected, states
from tests.support.counting import CountingWorker
from tests.support.toy import toy_engine, toy_spec

__all__ = ["expected"]

pytest.importorskip("ray", reason="RAY IS NOT INSTALLED: nothing about clusters is tested. make install brings it.")

SPEC = ExperimentSpec(name="x", cluster="auto")
GPUS = {"GPU": 4.0, "CPU": 32.0}
CPUS = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("devices", "resources", "count", "demands"),
    [
        ("auto", GPUS, 4, {"num_gpus": 1, "num_cpus": 1}),
        (3, GPUS, 3, {"num_gpus": 1, "num_cpus": 1}),
        ("auto", {"GPU": 2.0}, 2, {"num_gpus": 1, "num_cpus": 0}),
        ("auto", CPUS, 2, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
        (8, CPUS, 8, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
    ],
)
def test_every_gpu_gets_an_actor_and_without_any_every_machine(
    devices: Any, resources: dict[str, float], count: int, demands: dict[str, Any]
) -> None:
    found = plan(replace(SPEC, devices=devices), resources, machines=2, environ={})
    assert (found.count, found.demands) == (count, demands)


def test_actors_find_the_variables_of_libraries_and_no_others() -> None:
    environ = {"HF_TOKEN": "secret", "OMP_NUM_THREADS": "3", "AWS_SECRET": "x", "HOME": "/root", "PATH": "/bin"}
    assert plan(SPEC, CPUS, 1, environ).environment == {"HF_TOKEN": "secret", "OMP_NUM_THREADS": "3"}
    # Ray would choose one otherwise, and bits depend on it.
    assert plan(replace(SPEC, devices=4), CPUS, 1, {}).environment == {"OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("devices", "resources", "words"),
    [
        (5, GPUS, "engine.devices is 5, but the cluster has 4 GPUs."),
        (9, CPUS, "engine.devices is 9, but the cluster has 8 cores."),
        ((0, 2), GPUS, r"engine.devices is \[0, 2\], which are places on one machine.*Allowed with a cluster: auto"),
    ],
)
def test_more_than_there_are_and_places_are_refused(devices: Any, resources: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(replace(SPEC, devices=devices), resources, 1, {})


def test_what_machines_must_have_in_common(tmp_path: Path) -> None:
    marker = tmp_path / ".seen-1"
    marker.touch()
    good = describe_machine(str(marker), str(tmp_path))
    check_machines([good], [good], tmp_path)
    other = replace(good, host="b", versions={**versions(), "torch": "1.0"})
    with pytest.raises(ConfigError, match=r"On b there is torch 1\.0 \(here .*constraints file"):
        check_machines([good, other], [good, other], tmp_path)
    del other.versions["trl"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="trl is missing"):
        check_machines([other], [other], tmp_path)
    blind = describe_machine(str(tmp_path / "elsewhere"), str(tmp_path))
    for answers, replied in (([blind], [blind]), ([good], [])):
        with pytest.raises(ConfigError, match=r"directory .* is not shared with .*hydra\.sweep\.dir=/shared"):
            check_machines(answers, replied, tmp_path)
    with pytest.raises(ConfigError, match="has no directory"):
        lost = describe_machine(str(marker), str(tmp_path / "nowhere"))
        check_machines([lost], [lost], tmp_path)


@pytest.mark.parametrize("cluster", ["somewhere", "head:port", 3, "ray://head:10001", ":6379"])
def test_nonsense_is_no_cluster(cluster: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine\.cluster is .*Allowed: null .*auto .*host:port"):
        read_experiment(OmegaConf.create({"engine": {"cluster": cluster}}))


def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "token" if name == "RAY_AUTH_MODE" else "0")
    with pytest.raises(ConfigError, match=r"nothing answers there: .*refused.*ray start --head"):
        join_cluster(replace(SPEC, cluster="127.0.0.1:1"), tmp_path)


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers as the head of a cluster does that wants tokens, or has none."""

    def __init__(self, *, wants: bool):
        self._wants = wants

    def service(self, call: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            if self._wants:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("wants", "given", "shown"),
    [
        (True, None, "token"),
        (False, None, "disabled"),  # a token may lie there all the same: whoever shows it loses every actor
        (True, "token", "token"),
        (True, "disabled", "RAY_AUTH_MODE is 'disabled', and the Ray cluster .* wants a token"),
        (False, "token", "RAY_AUTH_MODE is 'token', and the Ray cluster .* has no tokens"),
    ],
)
def test_a_token_is_shown_where_one_is_wanted(
    wants: bool, given: str | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str | None] = []
    monkeypatch.setattr("rfflow.slots.cluster._look_again", lambda: looked.append(os.environ.get("RAY_AUTH_MODE")))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", given)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head(wants=wants)])
    address = f"127.0.0.1:{server.add_insecure_port('0.0.0.0:0')}"
    server.start()
    try:
        refused = pytest.raises(ConfigError, match=shown) if " " in shown else contextlib.nullcontext()
        with refused, _showing_token(address):
            assert os.environ["RAY_AUTH_MODE"] == shown
    finally:
        server.stop(0)
    assert looked == ([] if " " in shown else [shown]) and os.environ.get("RAY_AUTH_MODE") == given


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_ray(name: str, *rest: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(ConfigError, match=r"Ray is not installed: pip install 'rfflow\[ray\]'"):
        join_cluster(SPEC, tmp_path)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of this machine alone."""
    import ray

    root = tmp_path_factory.mktemp("cluster")
    try:
        found = join_cluster(replace(SPEC, cluster="local", devices=2), root)
    except ConfigError as error:  # a machine without shared memory, say
        pytest.skip(f"NO RAY CLUSTER CAN BE STARTED HERE, so none is tested: {error}")
    assert not any(root.iterdir()), "what it has looked for is still there"
    yield replace(found, demands={"num_cpus": 0.5})
    ray.shutdown()


def test_actors_train_as_processes_do_and_one_that_dies_costs_nothing_but_time(
    local: Cluster, tmp_path: Path, expected: list[str], caplog: Any, capfd: Any
) -> None:
    watch = Watch(6, lambda: os.kill(slots.pid(1) or 0, signal.SIGKILL))
    slots = RaySlots(SPEC, local, CountingWorker)
    engine = toy_engine(tmp_path / "x", [toy_spec(CHUNKS)] * 4, [watch], make_slots=lambda spec: slots)
    engine.run()
    engine.close()
    assert [state.value for state in states(engine)] == ["completed"] * 4 and ends(tmp_path / "x") == expected
    assert sorted(watch.chunks) == [(run, chunk) for run in range(4) for chunk in range(1, CHUNKS + 1)]
    assert "The worker of slot 1 is lost" in caplog.text and "its actor died" in caplog.text
    assert "raylet" not in "".join(capfd.readouterr()), "Ray says what we say, too"


def test_an_actor_that_finds_no_room_is_not_waited_for(
    local: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rfflow.slots.ray._START", 0.1)
    full = replace(local, count=1, demands={"num_cpus": 1000})
    slots = RaySlots(SPEC, full, CountingWorker)
    engine = toy_engine(tmp_path / "x", [toy_spec(CHUNKS)], make_slots=lambda spec: slots)
    with pytest.raises(Exception, match=r"no actor has come within 0 s: Ray has no room for it.*cluster has\)\. "):
        engine.run()
    engine.close()
