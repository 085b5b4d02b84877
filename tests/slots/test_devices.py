"""Which devices are found, and what is said where they are not there."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

from rfflow.config.spec import BuiltSpec, ExperimentSpec
from rfflow.errors import ConfigError
from rfflow.slots.devices import find_devices, with_what_can_travel
from tests.support.toy import toy_spec

CORES = len(os.sched_getaffinity(0))


def shown(devices: Any, gpus: int = 0, **environ: str) -> list[str]:
    """Return what each worker's process is shown."""
    found = find_devices(ExperimentSpec(name="x", devices=devices), environ, lambda: gpus)
    return [device.environment.get("CUDA_VISIBLE_DEVICES", device.name) for device in found]


@pytest.mark.parametrize(
    ("devices", "gpus", "environ", "expected"),
    [
        ("auto", 0, {}, ["cpu"]),
        ("auto", 4, {}, ["0", "1", "2", "3"]),
        ("auto", 4, {"CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
        ("auto", 2, {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, ["MIG-a", "MIG-b"]),
        ("auto", 0, {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ("auto", 4, {"CUDA_VISIBLE_DEVICES": "-1"}, ["cpu"]),
        (2, 4, {}, ["0", "1"]),
        ((0, 2), 4, {}, ["0", "2"]),
        ((1,), 2, {"CUDA_VISIBLE_DEVICES": "5,7"}, ["7"]),
        ((0,), 0, {}, ["cpu"]),
        (1, 0, {}, ["cpu"]),
    ],
)
def test_devices_are_found(devices: Any, gpus: int, environ: dict[str, str], expected: list[str]) -> None:
    assert shown(devices, gpus, **environ) == expected


@pytest.mark.parametrize(
    ("devices", "gpus", "environ", "words"),
    [
        (8, 4, {}, "engine.devices is 8, but 4 GPUs are visible."),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "3"}, r"is 2, but 1 GPU is visible \(CUDA_VISIBLE_DEVICES=3\)"),
        ((0, 4), 4, {}, r"is \[0, 4\], but 4 GPUs are visible. Allowed: numbers from 0 to 3"),
        ((0, 1), 0, {}, r"is \[0, 1\], which are GPUs, but none is visible"),
        (CORES + 1, 0, {}, f"is {CORES + 1}, but this process has {CORES} cores"),
    ],
)
def test_what_is_not_there_is_said(devices: Any, gpus: int, environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        shown(devices, gpus, **environ)


def test_workers_on_a_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    two = find_devices(ExperimentSpec(name="x", devices=2), {}, lambda: 0)
    assert [device.environment["OMP_NUM_THREADS"] for device in two] == ["4", "4"]
    chosen = find_devices(ExperimentSpec(name="x", devices=2), {"OMP_NUM_THREADS": "1"}, lambda: 0)
    assert [device.environment["OMP_NUM_THREADS"] for device in chosen] == ["1", "1"]


def build() -> None:
    """Stands for a function of a module that builds a trainer."""


def test_a_function_that_no_process_can_find_keeps_the_runs_in_this_one(caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody asked for several devices; who did is told that it cannot be."""
    run = toy_spec()
    auto, two = ExperimentSpec(name="x"), ExperimentSpec(name="x", devices=2)
    for made in (run, BuiltSpec(chunks=2, build=functools.partial(build, {"lr": 1}))):
        assert with_what_can_travel(auto, [run, made]) == auto
    hidden = BuiltSpec(chunks=2, build=lambda: None)
    assert with_what_can_travel(two, [hidden]) == two and not caplog.records
    assert with_what_can_travel(auto, [run, hidden]).devices == 1
    assert "cannot be given to another process, so they train on one device" in caplog.text
