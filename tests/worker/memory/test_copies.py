"""Copies beside the training: in which order they come, told by a lane that copies only when somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from rfflow.config.spec import MemorySpec
from rfflow.worker.memory.copies import DirectLane, lane_of
from rfflow.worker.memory.memory import Memory
from rfflow.worker.memory.offload import RunTensors, Tier
from rfflow.worker.models.safetensors_io import SafetensorsIO

SIZE = 100  # bytes that each run holds


class LateLane:
    """A lane of a device with streams, at its worst: nothing is copied before it must be."""

    def __init__(self) -> None:
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.begun_at: list[int] = []

    def is_here(self, tensor: torch.Tensor) -> bool:
        return True

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, -1)

    def begin(self) -> None:
        self.begun_at.append(len(self.copies))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert self.begun_at, "a copy that waits for no computing"
        self.copies.append((target, source))

    def mark(self) -> int:
        return len(self.copies)

    def hold_device_for(self, mark: int) -> None:
        for target, source in self.copies[self.done : mark]:
            target.copy_(source)
        self.done = max(self.done, mark)

    wait = hold_device_for


@pytest.fixture
def gpu() -> Any:
    """A Fabric that says that it has a GPU; its files are real."""
    files = Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()])
    return SimpleNamespace(device=torch.device("cuda"), save=files.save, load=files.load)


@pytest.fixture
def lane() -> LateLane:
    return LateLane()


@pytest.fixture
def make(gpu: Any, lane: LateLane, tmp_path: Path) -> Callable[[int], RunTensors]:
    def make(number: int) -> RunTensors:
        tensor = torch.full((SIZE // 4,), float(number))
        holdings = RunTensors(gpu, lambda: [tensor], tmp_path / str(number), lane)
        holdings.measure()
        return holdings

    return make


def value(holdings: RunTensors) -> float:
    """Return what its tensor holds, all of it."""
    (tensor,) = holdings._tensors()
    assert tensor.numel() == SIZE // 4 and bool((tensor == tensor[0]).all())
    return float(tensor[0])


def test_what_is_copied_beside_the_training_is_used_only_when_it_is_there(
    make: Callable[[int], RunTensors], lane: LateLane
) -> None:
    """To the host and back to the device, neither waited for until the run's turn comes."""
    run = make(7)
    run.move_to(Tier.HOST, wait=False)
    assert (lane.done, value(run)) == (0, -1), "somebody has waited"
    run.copy_ahead()
    assert lane.done == 0 and run.is_on_device and run.tier is Tier.HOST
    assert lane.begun_at == [0, 1], "the copies must wait for what the device computes, each way"
    run.move_to(Tier.DEVICE)
    assert (lane.done, value(run), run.tier) == (2, 7, Tier.DEVICE)


def test_nothing_half_copied_goes_to_disk(make: Callable[[int], RunTensors], lane: LateLane) -> None:
    run = make(7)
    run.move_to(Tier.HOST, wait=False)
    run.move_to(Tier.DISK)
    assert lane.done == 1
    run.move_to(Tier.DEVICE)
    assert value(run) == 7


def test_what_was_fetched_for_a_turn_that_does_not_come_is_let_go(make: Callable[[int], RunTensors]) -> None:
    """The host still has it."""
    run = make(7)
    run.move_to(Tier.HOST)
    run.copy_ahead()
    run.leave_device()
    assert not run.is_on_device and run.tier is Tier.HOST
    run.move_to(Tier.DEVICE)
    assert value(run) == 7


def round_robin(memory: Memory, runs: Sequence[RunTensors], turns: int) -> list[bool]:
    """Give the runs their turns; return for each whether it was on the device already when its turn came."""
    was_there = []
    for turn in range(turns):
        order = [*runs[turn % len(runs) :], *runs[: turn % len(runs)]]
        was_there.append(order[0].is_on_device)
        memory.make_room(order[0], order[1:])
        assert value(order[0]) == runs.index(order[0])
        memory.fetch_ahead(order[0], order[1:])
    return was_there


@pytest.mark.parametrize("limited", [False, True], ids=["what is free", "a limit"])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_the_next_run_is_brought_only_where_there_is_room_beside_the_one_that_trains(
    gpu: Any, make: Callable[[int], RunTensors], room: int, limited: bool
) -> None:
    """Room for two runs and what training takes: each is there when its turn comes. Room for one: none is in danger."""
    runs = [make(number) for number in range(4)]
    most, peak = room * SIZE + 50, 50

    def held() -> int:
        total = sum(run.bytes for run in runs if run.is_on_device)
        return total

    def free(device: torch.device) -> int:
        return 10**6 if device.type == "cpu" else most - held()

    memory = Memory(gpu, MemorySpec(device_limit=most if limited else None), free=free)
    for run in runs:
        run.move_to(Tier.HOST)
    memory.make_room(runs[0], runs[1:])
    memory.fetch_ahead(runs[0], runs[1:])
    assert not runs[1].is_on_device, "nobody knows yet what training takes"
    memory._peak = peak
    watched: list[int] = []
    for run in runs:
        run.before_move = lambda: watched.append(held())
    was_there = round_robin(memory, runs, turns=8)
    assert was_there[1:] == [room > 1] * 7
    assert held() + peak <= most and max(watched) + peak <= most
    memory.close()


@pytest.mark.parametrize("limited", [False, True], ids=["what is free", "a limit"])
def test_runs_that_train_at_once_are_there_at_once(gpu: Any, make: Callable[[int], RunTensors], limited: bool) -> None:
    """Others leave for what all of them hold and will hold, and nobody comes ahead for whom there is no room then."""
    runs = [make(number) for number in range(5)]
    most = 4 * SIZE

    def free(device: torch.device) -> int:
        return 10**6 if device.type == "cpu" else most - sum(run.bytes for run in runs if run.is_on_device)

    memory = Memory(gpu, MemorySpec(device_limit=most if limited else None), free=free)
    runs[0].coming = SIZE // 2
    runs[1].move_to(Tier.HOST)
    runs[4].move_to(Tier.HOST)
    memory._peak = SIZE // 2
    memory.make_room(runs[0], runs[1:])  # 0, 2 and 3 are there
    memory.make_room(runs[1], runs[2:], [runs[0]])
    assert [run.is_on_device for run in runs] == [True, True, True, False, False]
    memory.fetch_ahead(runs[1], [runs[4], runs[2], runs[3]], [runs[0]])
    assert [run.is_on_device for run in runs] == [True, True, False, False, True]
    memory.fetch_ahead(runs[1], [runs[2], runs[3]], [runs[0], runs[4]])
    assert not runs[2].is_on_device
    memory.close()


def test_a_cpu_needs_no_lane_of_its_own() -> None:
    assert isinstance(lane_of(torch.device("cpu")), DirectLane)


@pytest.mark.gpu
def test_a_run_comes_to_the_gpu_while_another_computes(tmp_path: Path) -> None:
    """Both ways beside long computing, many times; every bit is there when it is used, and none is overwritten."""
    fabric = Fabric(accelerator="cuda", devices=1, plugins=[SafetensorsIO()])
    tensors = [torch.full((1 << 22,), float(number), device=fabric.device) for number in range(4)]
    runs = [RunTensors(fabric, lambda t=t: [t], tmp_path / str(n)) for n, t in enumerate(tensors)]
    work = torch.randn(4096, 4096, device=fabric.device)
    for run in runs:
        run.measure()
        run.move_to(Tier.HOST)
    for turn in range(40):
        now, upcoming = turn % 4, (turn + 1) % 4
        runs[now].move_to(Tier.DEVICE)
        runs[upcoming].copy_ahead()
        for _ in range(5):
            work = torch.nn.functional.normalize(work @ work)
        tensors[now].add_(1.0)
        runs[now].move_to(Tier.HOST, wait=False)
    for number, (run, tensor) in enumerate(zip(runs, tensors, strict=True)):
        run.move_to(Tier.DEVICE)
        assert bool((tensor == number + 10).all())
