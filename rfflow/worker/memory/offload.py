"""The tensors that one run owns, and their way between the device, the host and the disk.

A tensor keeps its identity and its bits on the way: only its storage moves, so neither model nor optimizer notices.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from transformers import Trainer

from rfflow.worker.memory.copies import Lane, lane_of


class Tier(enum.Enum):
    """Where tensors are, the quickest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass
class _View:
    """A tensor whose storage others look at, too, and its place there."""

    tensor: torch.Tensor
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def put(self, whole: torch.Tensor) -> None:
        """Look at the storage of another tensor, or at nothing where that is empty."""
        data = torch.empty(0, dtype=self.tensor.dtype, device=whole.device)
        if whole.numel():
            data.set_(whole.untyped_storage(), self.offset, self.size, self.stride)
        self.tensor.data = data


@dataclass
class _Moved:
    """A tensor away from home, and what it takes to bring it back as it was.

    Where several look at one storage, as weights do that were tied by their data, it is that storage as bytes: the
    storage moves once, and they look at it again wherever it is.
    """

    tensor: torch.Tensor
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    views: Sequence[_View] = ()

    @classmethod
    def all_of(cls, tensors: Iterable[torch.Tensor]) -> list[_Moved]:
        """Return what has to move for these to move."""
        by_storage: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
        for tensor in tensors:
            try:
                place = tensor.untyped_storage().data_ptr()
            except (NotImplementedError, RuntimeError):  # sparse ones have several, some libraries' own have none
                place = 0
            by_storage.setdefault((tensor.device, place or -id(tensor)), []).append(tensor)
        moved = []
        for (device, _), sharing in by_storage.items():
            whole, views = sharing[0], []
            if len(sharing) > 1:
                views = [_View(t, int(t.storage_offset()), t.size(), t.stride()) for t in sharing]
                whole = torch.empty(0, dtype=torch.uint8, device=device).set_(whole.untyped_storage())
            moved.append(cls(whole, device, whole.size(), whole.stride(), views))
        return moved

    def put(self, data: torch.Tensor) -> None:
        """Let the tensor, and all that share its storage, be here."""
        self.tensor.data = data
        for view in self.views:
            view.put(data)

    def home(self, source: torch.Tensor) -> torch.Tensor:
        """Return room on its device."""
        # The strides too: a kernel may add up in another order over another layout. Where one place serves
        # several elements (an expanded buffer) nothing can be copied in, and each gets a place of its own.
        repeats = any(stride == 0 and size > 1 for size, stride in zip(self.size, self.stride, strict=True))
        stride = source.stride() if repeats else self.stride
        return torch.empty_strided(self.size, stride, dtype=source.dtype, device=self.device)


class RunTensors:
    """The tensors that one run alone owns."""

    def __init__(
        self,
        fabric: Fabric,
        tensors: Callable[[], Iterable[torch.Tensor]],
        file: Path,
        lane: Lane | None = None,
    ):
        self._fabric = fabric
        self._tensors = tensors
        self._file = file
        self._lane = lane or lane_of(fabric.device)
        self._moved: list[_Moved] = []
        self._ahead: Future[list[torch.Tensor]] | None = None
        self._homes: list[torch.Tensor] | None = None
        """The tensors on the device, while or after they are copied there ahead of their turn."""
        self._mark: Any = None
        """Behind the last copy."""
        self._is_cpu = fabric.device.type == "cpu"
        self.tier = Tier.DEVICE
        self.before_move: Callable[[], None] = lambda: None
        """Called before the tensors move: somebody may still be reading them."""
        self.bytes = 0
        """As of the last time the run was suspended."""
        self.coming = 0
        """What its first step will add for good, until the run has been measured behind it."""

    @property
    def is_on_device(self) -> bool:
        """Whether the device has given room for them, be they there or on their way."""
        return self.tier is Tier.DEVICE or self._homes is not None

    def measure(self) -> int:
        """Count the bytes; call it when the run has just been suspended."""
        if self.tier is Tier.DEVICE:
            self.bytes = sum(m.tensor.numel() * m.tensor.element_size() for m in _Moved.all_of(self._tensors()))
            self.coming = 0
        return self.bytes

    def move_to(self, tier: Tier, *, wait: bool = True) -> None:
        """Move every tensor. On the CPU the device and the host are the same place.

        Args:
            tier: where to.
            wait: until they have left the device; otherwise they leave beside what it computes next.
        """
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
            if wait:
                self._lane.wait(self._mark)
        else:
            self._to_disk()
        self.tier = tier

    def leave_device(self) -> None:
        """Make room on the device; on the CPU there is none to make."""
        self._ahead = self._homes = None  # fetched for a turn that does not come now
        if self.tier is Tier.DEVICE:
            self.move_to(Tier.HOST)

    def fetch_ahead(self, pool: ThreadPoolExecutor) -> None:
        """Begin to read from disk while another run trains; :meth:`move_to` waits for what is still missing."""
        if self.tier is Tier.DISK and self._ahead is None:
            self._ahead = pool.submit(self._read)

    def copy_ahead(self) -> None:
        """Begin to copy from the host to the device, beside what it computes; the host keeps its copies until then."""
        if self.tier is not Tier.HOST or self._homes is not None:
            return
        self._homes = [moved.home(moved.tensor.data) for moved in self._moved]
        # Behind the computing that may still use what was there before; and behind the copies to the host, which go
        # the same way.
        self._lane.begin()
        for home, moved in zip(self._homes, self._moved, strict=True):
            self._lane.copy(home, moved.tensor.data)
        self._mark = self._lane.mark()

    def forget(self) -> None:
        """Remove what lies on disk, where that can be: a disk that has become read-only is said by who needs it."""
        self._ahead = self._homes = None
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _to_host(self) -> None:
        self._moved = _Moved.all_of(self._tensors())
        self._lane.begin()
        for moved in self._moved:
            if self._lane.is_here(moved.tensor):
                on_host = self._lane.host_like(moved.tensor.data)
                self._lane.copy(on_host, moved.tensor.data)
                moved.put(on_host)
        self._mark = self._lane.mark()

    def _to_disk(self) -> None:
        if self.tier is Tier.DEVICE:
            self._moved = _Moved.all_of(self._tensors())
        else:
            self._lane.wait(self._mark)
        self._homes = None
        # Saved before anything is let go: a full disk leaves the run as it was.
        self._fabric.save(self._file, {"tensors": {str(i): m.tensor.data for i, m in enumerate(self._moved)}})
        for moved in self._moved:
            moved.put(torch.empty(0, dtype=moved.tensor.dtype))

    def _read(self) -> list[torch.Tensor]:
        saved = self._fabric.load(self._file)["tensors"]
        return [saved[str(index)] for index in range(len(saved))]

    def _bring_back(self) -> None:
        if self._homes is None:
            if self.tier is Tier.DISK:
                sources = self._ahead.result() if self._ahead is not None else self._read()
                self._ahead = None
            else:
                sources = [moved.tensor.data for moved in self._moved]
            self._homes = [moved.home(source) for moved, source in zip(self._moved, sources, strict=True)]
            self._lane.begin()
            for home, source in zip(self._homes, sources, strict=True):
                self._lane.copy(home, source)
            self._mark = self._lane.mark()
        self._lane.hold_device_for(self._mark)
        for moved, home in zip(self._moved, self._homes, strict=True):
            moved.put(home)
        self._moved, self._homes = [], None
        self._file.unlink(missing_ok=True)


def own_tensors(trainer: Trainer, *bases: torch.nn.Module) -> Callable[[], Iterator[torch.Tensor]]:
    """Return a function that lists what a trainer owns: weights and buffers that no base has, optimizer state.

    A reference model that it made for itself, to follow the model it trains, is its own too.
    """

    def tensors() -> Iterator[torch.Tensor]:
        seen = {id(tensor) for base in bases for tensor in (*base.parameters(), *base.buffers())}
        state = trainer.optimizer.state.values() if trainer.optimizer is not None else ()
        candidates: list[object] = []
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is None:
                continue
            candidates += [*model.parameters(), *model.buffers()]
        candidates += [value for values in state for value in values.values()]
        for tensor in candidates:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    return tensors


def trained_bytes(trainer: Trainer) -> int:
    """Return the bytes of the weights that a trainer changes."""
    weights = {id(weight): weight for weight in trainer.model.parameters() if weight.requires_grad}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())
