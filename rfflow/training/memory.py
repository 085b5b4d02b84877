"""Where a suspended run keeps its tensors: on the device, on the host, on disk.

A run owns few tensors when it trains an adapter on a shared base, and all of them when it trains every weight. What a
suspended run owns moves away when the device, or the host, is full, and comes back before its next chunk. A tensor
keeps its identity and its bits on the way: only its storage moves, so neither model nor optimizer notices.
"""

from __future__ import annotations

import enum
import gc
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from lightning_fabric import Fabric
from transformers import Trainer

from rfflow.errors import ConfigError
from rfflow.spec import MemorySpec

log = logging.getLogger(__name__)


class Tier(enum.Enum):
    """Where tensors are, the quickest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass
class _Moved:
    """A tensor away from home, and what it takes to bring it back as it was."""

    tensor: torch.Tensor
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]


class Holdings:
    """The tensors that one run alone owns."""

    def __init__(self, fabric: Fabric, tensors: Callable[[], Iterable[torch.Tensor]], file: Path):
        self._fabric = fabric
        self._tensors = tensors
        self._file = file
        self._moved: list[_Moved] = []
        self._ahead: Future[list[torch.Tensor]] | None = None
        self._is_cpu = fabric.device.type == "cpu"
        self.tier = Tier.DEVICE
        self.before_move: Callable[[], None] = lambda: None
        """Called before the tensors move: somebody may still be reading them."""
        self.bytes = 0
        """As of the last time the run was suspended."""

    def measure(self) -> int:
        """Count the bytes; call it when the run has just been suspended."""
        if self.tier is Tier.DEVICE:
            self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())
        return self.bytes

    def move_to(self, tier: Tier) -> None:
        """Move every tensor. On the CPU the device and the host are the same place."""
        if tier is Tier.HOST and self._is_cpu:
            tier = Tier.DEVICE
        if tier is self.tier:
            return
        self.before_move()
        if tier is Tier.DEVICE:
            self._bring_back()
        elif tier is Tier.HOST:
            assert self.tier is Tier.DEVICE, "from disk tensors go home"
            self._to_host()
        else:
            self._to_disk()
        self.tier = tier

    def leave_device(self) -> None:
        """Make room on the device; on the CPU there is none to make."""
        self._ahead = None  # read for a turn that does not come now
        if self.tier is Tier.DEVICE:
            self.move_to(Tier.HOST)

    def fetch_ahead(self, pool: ThreadPoolExecutor) -> None:
        """Begin to read from disk while another run trains; :meth:`move_to` waits for what is still missing."""
        if self.tier is Tier.DISK and self._ahead is None:
            self._ahead = pool.submit(self._read)

    def forget(self) -> None:
        """Remove what lies on disk."""
        self._ahead = None
        self._file.unlink(missing_ok=True)

    def _to_host(self) -> None:
        self._moved = [_Moved(t, t.device, t.size(), t.stride()) for t in self._tensors()]
        for moved in self._moved:
            if moved.device.type != "cpu":
                on_host = torch.empty_like(moved.tensor.data, device="cpu", pin_memory=True)
                on_host.copy_(moved.tensor.data, non_blocking=True)
                moved.tensor.data = on_host
        if not self._is_cpu:
            torch.get_device_module(self._fabric.device).synchronize()

    def _to_disk(self) -> None:
        if self.tier is Tier.DEVICE:
            self._moved = [_Moved(t, t.device, t.size(), t.stride()) for t in self._tensors()]
        # Saved before anything is let go: a full disk leaves the run as it was.
        self._fabric.save(self._file, {"tensors": {str(i): m.tensor.data for i, m in enumerate(self._moved)}})
        for moved in self._moved:
            moved.tensor.data = torch.empty(0, dtype=moved.tensor.dtype)

    def _read(self) -> list[torch.Tensor]:
        saved = self._fabric.load(self._file)["tensors"]
        return [saved[str(index)] for index in range(len(saved))]

    def _bring_back(self) -> None:
        if self.tier is Tier.DISK:
            sources = self._ahead.result() if self._ahead is not None else self._read()
            self._ahead = None
        else:
            sources = [moved.tensor.data for moved in self._moved]
        for moved, source in zip(self._moved, sources, strict=True):
            # The strides too: a kernel may add up in another order over another layout. Where one place serves
            # several elements (an expanded buffer) nothing can be copied in, and each gets a place of its own.
            repeats = any(stride == 0 and size > 1 for size, stride in zip(moved.size, moved.stride, strict=True))
            stride = source.stride() if repeats else moved.stride
            home = torch.empty_strided(moved.size, stride, dtype=source.dtype, device=moved.device)
            home.copy_(source, non_blocking=True)
            moved.tensor.data = home
        self._moved = []
        self._file.unlink(missing_ok=True)


def own_tensors(trainer: Trainer, base: torch.nn.Module) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that lists what a trainer owns: weights and buffers that the base has not, optimizer state."""

    def tensors() -> Iterator[torch.Tensor]:
        seen = {id(tensor) for tensor in base.parameters()} | {id(tensor) for tensor in base.buffers()}
        state = trainer.optimizer.state.values() if trainer.optimizer is not None else ()
        candidates: list[object] = [*trainer.model.parameters(), *trainer.model.buffers()]
        candidates += [value for values in state for value in values.values()]
        for tensor in candidates:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    return tensors


class Memory:
    """Keeps the runs' tensors within the limits, the ones needed soonest nearest."""

    def __init__(self, fabric: Fabric, spec: MemorySpec):
        self._device = fabric.device
        self._is_cpu = fabric.device.type == "cpu"
        limit = parse_bytes(spec.device_limit, "engine.memory.device_limit")
        if spec.device_limit is not None and limit == 0:
            raise ConfigError("engine.memory.device_limit is 0, so nothing could train. Leave it out for what is free.")
        self.device_limit = limit or _free_bytes(fabric.device)
        # Half of what is free: the rest is for what training itself takes, and for other programs.
        host_free = psutil.virtual_memory().available
        self.host_limit = (
            host_free // 2 if spec.host_limit is None else parse_bytes(spec.host_limit, "engine.memory.host_limit")
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rfflow-fetch")
        self._peak = 0

    def require(self, own: int, trained: int, what: str) -> None:
        """Refuse a run that cannot fit even when every other run is moved away.

        Args:
            own: bytes of the weights that would be the run's own.
            trained: bytes of those that are trained; gradients take as much again, AdamW's state twice as much.
            what: how to name the run.

        Raises:
            ConfigError: with the figures.
        """
        need = own + 3 * trained
        if need > self.device_limit:
            raise ConfigError(
                f"{what} needs {show_bytes(need)} on the {self._device.type} (weights {show_bytes(own)}, gradients "
                f"{show_bytes(trained)}, optimizer {show_bytes(2 * trained)}), but {show_bytes(self.device_limit)} are "
                "there for runs. An adapter (peft=lora), a smaller dtype or a smaller model needs less."
            )

    def make_room(self, wanted: Holdings, others: Sequence[Holdings]) -> None:
        """Bring a run's tensors to the device.

        Args:
            wanted: the run that trains now.
            others: the other runs, soonest needed first, stopped ones last.
        """
        if not self._is_cpu:
            used = sum(other.bytes for other in others if other.tier is Tier.DEVICE)
            for other in reversed(others):
                if used + wanted.bytes + self._peak <= self.device_limit:
                    break
                if other.tier is Tier.DEVICE:
                    other.move_to(Tier.HOST)
                    used -= other.bytes
        self.keep_within_host(others)
        wanted.move_to(Tier.DEVICE)

    def keep_within_host(self, suspended: Sequence[Holdings]) -> None:
        """Move what the host has no room for to disk, the least urgent first."""
        tier = Tier.DEVICE if self._is_cpu else Tier.HOST
        used = sum(holdings.bytes for holdings in suspended if holdings.tier is tier)
        for holdings in reversed(suspended):
            if used <= self.host_limit:
                break
            if holdings.tier is tier and holdings.bytes:
                try:
                    holdings.move_to(Tier.DISK)
                except OSError as error:  # the run stays as it was, and whole
                    log.warning("Cannot move a suspended run to disk, so it stays in memory: %s", error)
                    return
                used -= holdings.bytes

    def fetch_ahead(self, upcoming: Holdings) -> None:
        """Read the next run's tensors from disk while the current one trains."""
        upcoming.fetch_ahead(self._pool)

    def observe(self) -> None:
        """Measure, after a chunk, what training takes besides the tensors that runs own."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
            self._peak = max(self._peak, peak)
            torch.cuda.reset_peak_memory_stats(self._device)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)


_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(value: int | str | None, where: str) -> int:
    """Read a number of bytes such as ``512MB``, ``8 GB`` or, in powers of 1024, ``8GiB``; ``None`` is 0.

    Raises:
        ConfigError: if it is none.
    """
    if value is None:
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{where} is {value!r}. Allowed: bytes, such as 800000000, 800MB or 8GB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])


def show_bytes(count: float) -> str:
    """Write a number of bytes for people: ``1.3 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def out_of_memory_advice(error: BaseException, device: torch.device) -> str:
    """Say what a run lacked and what it might try."""
    free = f" {show_bytes(_free_bytes(device))} are free on the {device.type} now."
    first = " ".join(str(error).split())[:300]
    return (
        f"out of memory, also with every other run moved away: {first}{free} Try a smaller "
        "trainer.args.per_device_train_batch_size with a larger trainer.args.gradient_accumulation_steps, a smaller "
        "trainer.args.max_length, trainer.args.activation_checkpointing=true, an adapter (peft=lora) or a smaller "
        "dtype."
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
