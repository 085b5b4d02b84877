"""What a suspended run owns goes to the host or to disk, and comes back as the same tensors with the same bits."""

from __future__ import annotations

import contextlib
import errno
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from rfflow.config.spec import ExperimentSpec, MemorySpec, ModelSpec
from rfflow.errors import ConfigError
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.memory.memory import Memory
from rfflow.worker.memory.offload import RunTensors, Tier, own_tensors
from rfflow.worker.memory.sizes import Need, show_bytes
from rfflow.worker.models.loading import load_base
from rfflow.worker.models.safetensors_io import SafetensorsIO
from rfflow.worker.shared import Shared
from rfflow.worker.training.session import TrainingSession
from rfflow.worker.worker import Worker
from tests.support.tiny import make_model, run_spec

MAKERS: dict[str, Callable[[], torch.Tensor]] = {
    "float32": lambda: torch.randn(5, 7),
    "bfloat16": lambda: torch.randn(5, 7).to(torch.bfloat16),
    "float16 with odd values": lambda: torch.tensor([float("nan"), float("-inf"), -0.0, 6e-8], dtype=torch.float16),
    "integers": lambda: torch.arange(9),
    "booleans": lambda: torch.tensor([True, False, True]),
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
    "no dimension": lambda: torch.tensor(17.0),
    "empty": lambda: torch.empty(0, 4),
    "transposed": lambda: torch.randn(5, 7).t(),
    "every other column": lambda: torch.randn(6, 8)[:, ::2],
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "one row repeated": lambda: torch.randn(1, 4).expand(3, 4),
}


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()])


def bits(tensor: torch.Tensor) -> bytes:
    """Return every bit, of NaN and of negative zero too."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def hold(fabric: Fabric, file: Path, *tensors: torch.Tensor) -> RunTensors:
    """Return holdings of these tensors, measured."""
    holdings = RunTensors(fabric, lambda: tensors, file)
    holdings.measure()
    return holdings


def shared() -> list[torch.Tensor]:
    """Return tensors that look at one storage (weights tied by their data, a part, another order), and one apart."""
    whole = torch.arange(24.0).reshape(4, 6)
    tied = torch.nn.Parameter(whole)
    return [torch.nn.Parameter(whole), tied, whole[1:3, 2:], whole.t(), torch.arange(6.0)]


def assert_shared(tensors: list[torch.Tensor]) -> None:
    """Assert that they are as they were, and that what is written to one is seen in the others."""
    for tensor, as_made in zip(tensors, shared(), strict=True):
        assert bits(tensor) == bits(as_made) and tensor.stride() == as_made.stride()
    with torch.no_grad():
        tensors[0][2, 3] = -7
    assert [tensors[1][2, 3], tensors[2][1, 1], tensors[3][3, 2]] == [-7, -7, -7] and tensors[4].min() == 0


def test_tensors_that_share_a_storage_share_it_when_they_come_back(fabric: Fabric, tmp_path: Path) -> None:
    """Else weights that were tied by their data would be trained apart from then on, without a word."""
    tensors = shared()
    holdings = hold(fabric, tmp_path / "state", *tensors)
    assert holdings.bytes == (24 + 6) * 4
    holdings.move_to(Tier.DISK)
    assert not any(tensor.numel() for tensor in tensors)
    holdings.move_to(Tier.DEVICE)
    assert_shared(tensors)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_tensor_comes_back_from_disk_as_it_was(fabric: Fabric, tmp_path: Path, make: Callable[[], Any]) -> None:
    """The object, the bits, the type, the shape, and the strides where kernels could tell."""
    tensor = make()
    before, identity, strides, kind = bits(tensor), id(tensor), tensor.stride(), (tensor.dtype, tensor.shape)
    holdings = hold(fabric, tmp_path / "state", tensor)
    size = holdings.bytes
    holdings.move_to(Tier.DISK)
    assert tensor.numel() == 0 and tensor.dtype == kind[0] and (tmp_path / "state").is_file()
    assert holdings.measure() == size, "what is away still counts as much as it will take"
    holdings.move_to(Tier.DEVICE)
    assert (bits(tensor), id(tensor), (tensor.dtype, tensor.shape)) == (before, identity, kind)
    assert tensor.stride() == strides or tensor.numel() < size
    assert not (tmp_path / "state").exists()


def test_a_model_and_its_optimizer_go_on_as_if_they_had_never_left(fabric: Fabric, tmp_path: Path) -> None:
    """Tied weights stay tied, gradients and AdamW's steps go where they should, over several trips."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 6)
            self.head = torch.nn.Linear(6, 11, bias=False)
            self.head.weight = self.embedding.weight
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(rows)) * self.scale

    def train(trip: Callable[[torch.nn.Module, torch.optim.Optimizer], None]) -> torch.Tensor:
        torch.manual_seed(3)
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(6):
            model(torch.arange(step, step + 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            trip(model, optimizer)
        assert model.head.weight is model.embedding.weight
        return model.head.weight.detach()

    def to_disk_and_back(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        trainer: Any = type("Trainer", (), {"model": model, "optimizer": optimizer})
        holdings = RunTensors(fabric, own_tensors(trainer, torch.nn.Linear(1, 1)), tmp_path / "state")
        parameter = 11 * 6 * 4
        assert holdings.measure() == parameter + 4 + 2 * parameter + 4  # weights, scale, two moments, the step
        holdings.move_to(Tier.DISK)
        assert model.head.weight.numel() == 0
        holdings.move_to(Tier.DEVICE)

    assert torch.equal(train(to_disk_and_back), train(lambda model, optimizer: None))


def test_what_belongs_to_the_base_stays(fabric: Fabric, tmp_path: Path) -> None:
    """Only what the run has besides the base moves: the others go on using it."""
    base = torch.nn.Linear(4, 4)
    adapter = torch.nn.Linear(4, 2)
    model = torch.nn.ModuleList([base, adapter])
    trainer: Any = type("Trainer", (), {"model": model, "optimizer": None})
    holdings = RunTensors(fabric, own_tensors(trainer, base), tmp_path / "state")
    assert holdings.measure() == (8 + 2) * 4
    holdings.move_to(Tier.DISK)
    assert base.weight.numel() == 16 and adapter.weight.numel() == 0


def test_a_reference_that_a_trainer_made_for_itself_moves_with_it(fabric: Fabric, tmp_path: Path) -> None:
    """DPO's that follows the model, say; one with the weights of a base stays where it is."""
    model, other, follows = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    trainer: Any = type("Trainer", (), {"model": model, "optimizer": None, "ref_model": follows})
    holdings = RunTensors(fabric, own_tensors(trainer, torch.nn.Linear(1, 1), other), tmp_path / "state")
    assert holdings.measure() == 2 * 20 * 4
    holdings.move_to(Tier.DISK)
    assert follows.weight.numel() == 0
    holdings.move_to(Tier.DEVICE)
    trainer.ref_model = other
    assert holdings.measure() == 20 * 4


def test_reading_ahead_gives_the_same_bits(fabric: Fabric, tmp_path: Path) -> None:
    memory = Memory(fabric, MemorySpec(host_limit=0))
    tensors = [torch.randn(100), torch.randn(3, 4).to(torch.bfloat16)]
    before = [bits(tensor) for tensor in tensors]
    holdings = hold(fabric, tmp_path / "state", *tensors)
    other = hold(fabric, tmp_path / "other")
    memory.fetch_ahead(other, [holdings])  # it is here: nothing to do
    memory.keep_within_host([holdings])
    assert holdings.tier is Tier.DISK
    for _ in range(2):
        memory.fetch_ahead(other, [holdings])
    memory.make_room(holdings, [])
    assert [bits(tensor) for tensor in tensors] == before and holdings.tier is Tier.DEVICE
    memory.close()


def test_the_host_limit_is_kept_with_the_least_urgent_on_disk(fabric: Fabric, tmp_path: Path) -> None:
    """Runs are given soonest needed first; the one that trains now comes back and does not count."""
    memory = Memory(fabric, MemorySpec(host_limit=250))
    runs = [hold(fabric, tmp_path / str(number), torch.zeros(25)) for number in range(4)]  # 100 bytes each
    memory.keep_within_host(runs)
    assert [run.tier for run in runs] == [Tier.DEVICE, Tier.DEVICE, Tier.DISK, Tier.DISK]
    memory.make_room(runs[3], [runs[0], runs[1], runs[2]])
    assert [run.tier for run in runs] == [Tier.DEVICE, Tier.DEVICE, Tier.DISK, Tier.DEVICE]
    memory.make_room(runs[2], [runs[3], runs[0], runs[1]])
    assert [run.tier for run in runs] == [Tier.DEVICE, Tier.DISK, Tier.DEVICE, Tier.DEVICE]


# --- a disk that lets us down -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let the operating system refuse to write more than so many bytes into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_a_run_whole_and_in_memory(
    fabric: Fabric, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operating system itself refuses the write; nothing half-written stays."""
    memory = Memory(fabric, MemorySpec(host_limit=0))
    tensor = torch.randn(10_000)
    before = bits(tensor)
    holdings = hold(fabric, tmp_path / "state", tensor)
    with no_file_above(4096):
        memory.keep_within_host([holdings])
    assert holdings.tier is Tier.DEVICE and bits(tensor) == before
    assert "stays in memory" in caplog.text and list(tmp_path.iterdir()) == []
    memory.keep_within_host([holdings])  # there is room again
    assert holdings.tier is Tier.DISK
    holdings.move_to(Tier.DEVICE)
    assert bits(tensor) == before


def test_a_full_disk_ends_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are stopped while nothing can be written stay in memory and can be resumed."""
    from tests.engine.test_steering import At, drop, play
    from tests.support.toy import settle_at_once, toy_engine, toy_spec

    settle_at_once(monkeypatch)
    steps = [At(0, 0, drop({"op": "stop", "run": 1}, "1.yaml")), At(0, 2, drop({"op": "resume", "run": 1}, "2.yaml"))]
    engine = toy_engine(tmp_path, [toy_spec(), toy_spec()], steps, memory=MemorySpec(host_limit=0))
    save = engine.fabric.save

    def full(path: Any, state: Any) -> None:
        if Path(path).name == ".suspended.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, state)

    monkeypatch.setattr(engine.fabric, "save", full)
    assert play(engine) == [RunState.COMPLETED, RunState.COMPLETED]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "read ahead"])
def test_a_damaged_file_fails_that_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """It says which file; the others go on, read ahead or not."""
    from tests.engine.test_steering import At, drop, play
    from tests.support.toy import settle_at_once, toy_engine, toy_spec

    settle_at_once(monkeypatch)

    def damage(experiment: Any) -> None:
        file = experiment.run(1).paths.root / ".suspended.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        drop({"op": "resume", "run": 1}, "2.yaml")(experiment)

    steps = [At(0, 0, drop({"op": "stop", "run": 1}, "1.yaml")), At(0, 1, damage)]
    engine = toy_engine(tmp_path, [toy_spec()] * 3, steps, memory=MemorySpec(host_limit=0))
    if not ahead:
        monkeypatch.setattr(Memory, "fetch_ahead", lambda self, *given: None)
    assert play(engine) == [RunState.COMPLETED, RunState.FAILED, RunState.COMPLETED]
    error = engine.experiment.run(1).error
    assert isinstance(error, OSError) and ".suspended.safetensors cannot be read" in str(error)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_refused_with_the_figures(fabric: Fabric, tmp_path: Path) -> None:
    """Against what is free, counting what others could give up; and against a limit of the user's."""
    memory = Memory(fabric, MemorySpec(), free=lambda device: 1_000_000_000)
    memory.require(Need.of(250_000_000, 250_000_000, "adamw_torch"), "Training every weight")
    memory.require(Need.of(400_000_000, 200_000_000, "adamw_torch_fused"), "Training half of the weights")
    memory.require(Need.of(490_000_000, 490_000_000, "sgd"), "Training without a state")
    need = Need.of(300_000_000, 300_000_000, "adamw_torch")
    with pytest.raises(ConfigError) as refused:
        memory.require(need, "Training every weight")
    assert str(refused.value).startswith(
        "Training every weight needs 1.2 GB on the cpu (weights 300.0 MB, gradients 300.0 MB, optimizer 600.0 MB), "
        "but only 1.0 GB are free."
    )
    memory.require(need, "What is partly there", there=300_000_000)
    other = hold(fabric, tmp_path / "other", torch.zeros(50_000_000))
    memory.suspended = lambda: [other]
    memory.require(need, "What fits with the other on disk")
    assert other.tier is Tier.DEVICE, "its weights alone fit beside the other"
    with pytest.raises(ConfigError, match=r"1\.0 GB are free and 200\.0 MB of other runs that could be moved away"):
        memory.require(Need(1_000_000_000, 300_000_000, 0), "Too much")
    limited = Memory(fabric, MemorySpec(device_limit="1GB"), free=lambda device: 10**12)
    with pytest.raises(ConfigError, match=r"but 1\.0 GB are there for runs \(engine\.memory\.device_limit\)"):
        limited.require(need, "Training every weight")
    Memory(fabric, MemorySpec(device_limit="2GB"), free=lambda device: 0).require(need, "What swap will hold")


def test_others_make_room_for_a_run_before_it_is_built(fabric: Fabric, tmp_path: Path) -> None:
    """The least urgent goes to disk first, and no more than needed."""
    runs = [hold(fabric, tmp_path / str(number), torch.zeros(25)) for number in range(3)]  # 100 bytes each
    gone = lambda: sum(run.bytes for run in runs if run.tier is Tier.DISK)  # noqa: E731
    memory = Memory(fabric, MemorySpec(host_limit=1000), free=lambda device: 50 + gone())
    memory.suspended = lambda: runs
    memory.require(Need(120, 0, 0), "A run")
    assert [run.tier for run in runs] == [Tier.DEVICE, Tier.DEVICE, Tier.DISK]


def test_a_base_model_that_cannot_be_loaded_is_refused_before_it_is(fabric: Fabric, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    size = sum(p.numel() * p.element_size() for p in load_base(ModelSpec(str(model)))[0].parameters())
    Memory(fabric, MemorySpec(), free=lambda device: size).require_base(str(model), {"dtype": "float32"})
    memory = Memory(fabric, MemorySpec(), free=lambda device: size - 1)
    with pytest.raises(ConfigError) as refused:
        load_base(ModelSpec(str(model)), before=memory.require_base)
    assert "its weights take" in str(refused.value) and "are free on the cpu" in str(refused.value)
    assert show_bytes(size) in str(refused.value) and "bfloat16" in str(refused.value)
    memory.require_base(str(model), {"dtype": "bfloat16"})
    memory.require_base("an/unknown-one", {})


@pytest.mark.parametrize(
    ("changes", "free", "said"),
    [
        ({"peft": None}, 1_000_000, "Training every weight of the model needs .*peft=lora"),
        ({"peft": {"r": 10**7}}, 10**10, "Training its adapter needs .*A smaller peft.r"),
        ({"peft": {"r": 400, "target_modules": None}}, 2_000_000, "Training its adapter needs .*A smaller peft.r"),
    ],
    ids=["every weight", "an adapter of no sense", "targets that only PEFT knows"],
)
def test_what_does_not_fit_is_refused_before_training_whatever_is_trained(
    fabric: Fabric, tmp_path: Path, tiny_model: Path, tiny_data: Path, changes: dict[str, Any], free: int, said: str
) -> None:
    """An absurd rank is found before its adapter is made: the system would end the whole process."""
    shared = Shared(fabric, MemorySpec(), seed=0)
    shared.memory._free = lambda device: free
    run = Run(7, run_spec(tiny_model, tiny_data, **changes), ("peft.r=7",), RunPaths(tmp_path / "7"))
    run.paths.root.mkdir()
    session = TrainingSession(run.card(), shared)
    with pytest.raises(ConfigError) as refused:
        session.prepare()
    session.close()
    assert re.match(rf"Run 7 \(peft.r=7\): {said}", str(refused.value)) and "are free" in str(refused.value)


def test_without_limits_they_are_what_is_free(fabric: Fabric) -> None:
    assert Memory(fabric, MemorySpec()).host_limit > 10_000_000
    assert Memory(fabric, MemorySpec(), free=lambda device: 10**9).host_limit == 5 * 10**8
    assert Memory(fabric, MemorySpec(host_limit=0)).host_limit == 0


def test_workers_on_one_cpu_count_on_a_part_each(fabric: Fabric) -> None:
    spec = ExperimentSpec(name="test", accelerator="cpu", devices=2)
    shares = [Worker(each, fabric, lambda *_: None).shared.memory for each in (spec, replace(spec, devices="auto"))]
    for memory in shares:
        memory._free = lambda device: 1000
    assert [memory.left(100) for memory in shares] == [400, 900]


def test_no_room_at_all_on_the_device_is_refused(fabric: Fabric) -> None:
    """Nought is no word for 'what is free'."""
    with pytest.raises(ConfigError, match=r"engine\.memory\.device_limit is 0"):
        Memory(fabric, MemorySpec(device_limit=0))


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_tensor_on_a_gpu_comes_back_as_it_was(tmp_path: Path, tier: Tier, make: Callable[[], Any]) -> None:
    """From pinned host memory and from disk; an optimizer's step that lives on the host stays there."""
    fabric = Fabric(accelerator="cuda", devices=1, plugins=[SafetensorsIO()])
    tensor, step = make().to(fabric.device), torch.tensor(3.0)
    before, strides, shape = bits(tensor), tensor.stride(), tensor.shape
    holdings = hold(fabric, tmp_path / "state", tensor, step)
    holdings.move_to(Tier.HOST)
    assert tensor.device.type == "cpu" and (tensor.is_pinned() or not tensor.numel())
    holdings.move_to(tier)
    holdings.move_to(Tier.DEVICE)
    assert tensor.device == fabric.device and bits(tensor) == before and tensor.shape == shape
    assert tensor.stride() == strides or 0 in strides
    assert step.device.type == "cpu" and step.item() == 3.0


@pytest.mark.gpu
@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_tensors_that_share_a_storage_on_a_gpu_share_it_when_they_come_back(tmp_path: Path, tier: Tier) -> None:
    fabric = Fabric(accelerator="cuda", devices=1, plugins=[SafetensorsIO()])
    whole = torch.arange(24.0, device=fabric.device).reshape(4, 6)
    tensors = [torch.nn.Parameter(whole), torch.nn.Parameter(whole), whole[1:3, 2:], whole.t()]
    tensors.append(torch.arange(6.0, device=fabric.device))
    holdings = hold(fabric, tmp_path / "state", *tensors)
    holdings.move_to(Tier.HOST)
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    assert tensors[0].data_ptr() == tensors[1].data_ptr()
    holdings.move_to(tier)
    holdings.move_to(Tier.DEVICE)
    assert all(tensor.device == fabric.device for tensor in tensors)
    assert_shared(tensors)
