"""What a suspended run owns goes to the host or to disk, and comes back as the same tensors with the same bits."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from rfflow.errors import ConfigError
from rfflow.runs import RunState
from rfflow.spec import MemorySpec
from rfflow.training.checkpoint import SafetensorsIO
from rfflow.training.memory import Holdings, Memory, Tier, own_tensors, parse_bytes, show_bytes
from tests.tiny import make_model, run_spec

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


def hold(fabric: Fabric, file: Path, *tensors: torch.Tensor) -> Holdings:
    """Return holdings of these tensors, measured."""
    holdings = Holdings(fabric, lambda: tensors, file)
    holdings.measure()
    return holdings


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
        holdings = Holdings(fabric, own_tensors(trainer, torch.nn.Linear(1, 1)), tmp_path / "state")
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
    holdings = Holdings(fabric, own_tensors(trainer, base), tmp_path / "state")
    assert holdings.measure() == (8 + 2) * 4
    holdings.move_to(Tier.DISK)
    assert base.weight.numel() == 16 and adapter.weight.numel() == 0


def test_reading_ahead_gives_the_same_bits(fabric: Fabric, tmp_path: Path) -> None:
    memory = Memory(fabric, MemorySpec(host_limit=0))
    tensors = [torch.randn(100), torch.randn(3, 4).to(torch.bfloat16)]
    before = [bits(tensor) for tensor in tensors]
    holdings = hold(fabric, tmp_path / "state", *tensors)
    memory.fetch_ahead(holdings)  # it is here: nothing to do
    memory.keep_within_host([holdings])
    assert holdings.tier is Tier.DISK
    for _ in range(2):
        memory.fetch_ahead(holdings)
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
    from tests.test_steering import At, drop, play
    from tests.toy import settle_at_once, toy_engine, toy_spec

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
    from tests.test_steering import At, drop, play
    from tests.toy import settle_at_once, toy_engine, toy_spec

    settle_at_once(monkeypatch)

    def damage(experiment: Any) -> None:
        file = experiment.run(1).paths.root / ".suspended.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
        drop({"op": "resume", "run": 1}, "2.yaml")(experiment)

    steps = [At(0, 0, drop({"op": "stop", "run": 1}, "1.yaml")), At(0, 1, damage)]
    engine = toy_engine(tmp_path, [toy_spec()] * 3, steps, memory=MemorySpec(host_limit=0))
    if not ahead:
        monkeypatch.setattr(Memory, "fetch_ahead", lambda self, upcoming: None)
    assert play(engine) == [RunState.COMPLETED, RunState.FAILED, RunState.COMPLETED]
    error = engine.experiment.run(1).error
    assert isinstance(error, OSError) and ".suspended.safetensors cannot be read" in str(error)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_full_fine_tune_that_cannot_fit_is_refused_with_the_figures(fabric: Fabric) -> None:
    memory = Memory(fabric, MemorySpec(device_limit="1GB"))
    memory.require(250_000_000, 250_000_000, "Training every weight")
    memory.require(400_000_000, 200_000_000, "Training half of the weights")
    with pytest.raises(ConfigError) as refused:
        memory.require(300_000_000, 300_000_000, "Training every weight")
    assert str(refused.value).startswith(
        "Training every weight needs 1.2 GB on the cpu (weights 300.0 MB, gradients 300.0 MB, optimizer 600.0 MB), "
        "but 1.0 GB are there for runs."
    )


def test_without_limits_they_are_what_is_free(fabric: Fabric) -> None:
    memory = Memory(fabric, MemorySpec())
    assert memory.device_limit > 10_000_000 and memory.host_limit > 10_000_000
    assert Memory(fabric, MemorySpec(host_limit=0)).host_limit == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (800, 800),
        ("800", 800),
        (" 800MB ", 800_000_000),
        ("8 gb", 8_000_000_000),
        ("1.5k", 1500),
        ("2T", 2 * 10**12),
        ("1GiB", 2**30),
        ("2Ki", 2048),
        (None, 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: int | str | None, count: int) -> None:
    assert parse_bytes(text, "here") == count


@pytest.mark.parametrize("text", ["", "MB", "-1", "8 XB", "1e9", "5iB", "lots", True, "8GB8"])
def test_a_size_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine\.memory\.host_limit is .*Allowed: bytes, such as"):
        parse_bytes(text, "engine.memory.host_limit")


def test_no_room_at_all_on_the_device_is_refused(fabric: Fabric) -> None:
    """Nought is no word for 'what is free'."""
    with pytest.raises(ConfigError, match=r"engine\.memory\.device_limit is 0"):
        Memory(fabric, MemorySpec(device_limit=0))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3e13, "30000.0 GB")]
)
def test_sizes_are_written_for_people(count: float, text: str) -> None:
    assert show_bytes(count) == text


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
def test_full_fine_tunes_that_do_not_fit_together_take_turns_on_the_gpu(tmp_path: Path, tiny_data: Path) -> None:
    """Two runs of every weight with room for one end as each does alone."""
    from tests.training.test_exactness import outcomes, train_together

    model = make_model(tmp_path / "model")
    specs = [run_spec(model, tiny_data, peft=None, args={"use_cpu": False, "learning_rate": r}) for r in (1e-3, 1e-4)]
    apart = [train_together([spec], tmp_path / f"alone-{number}")[1]["0"] for number, spec in enumerate(specs)]
    from rfflow.engine import Engine
    from rfflow.runs import ExperimentPaths
    from rfflow.spec import ExperimentSpec

    spec = ExperimentSpec("test", accelerator="cuda", memory=MemorySpec(device_limit="9MB", host_limit=0))
    engine = Engine(spec, ExperimentPaths(tmp_path / "together"))
    with outcomes() as together:
        for number, run in enumerate(specs):
            engine.add(run, number)
        engine.run()
    engine.close()
    for number, alone in enumerate(apart):
        assert not together[str(number)].differences(alone)
