"""Copies between the device and the host: one after the other, or on a CUDA stream of their own beside the training."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch


class Lane(Protocol):
    """Where copies go. What is copied may be used once whoever uses it has waited for the mark set behind it."""

    def is_here(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device; an optimizer may keep some of its own on the host."""
        ...

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return room on the host."""
        ...

    def begin(self) -> None:
        """Let no copy begin before what the device has been asked to compute until now."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy, perhaps later; neither place is given to anybody else until then, even if both are let go."""
        ...

    def mark(self) -> Any:
        """Return a mark behind the copies so far."""
        ...

    def hold_device_for(self, mark: Any) -> None:
        """Let the device compute nothing more before the copies up to a mark are done; the host goes on."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until the copies up to a mark are done."""
        ...


class DirectLane:
    """Copies at once: for a CPU, where nothing needs copying, and devices without streams."""

    def is_here(self, tensor: torch.Tensor) -> bool:
        """Return whether it is not on the host."""
        return tensor.device.type != "cpu"

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ordinary memory."""
        return torch.empty_like(tensor, device="cpu")

    def begin(self) -> None:
        """There is nothing to wait for."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy at once."""
        target.copy_(source)

    def mark(self) -> Any:
        """Everything is done already."""
        return None

    def hold_device_for(self, mark: Any) -> None:
        """It is done."""

    def wait(self, mark: Any) -> None:
        """It is done."""


class StreamLane:
    """Copies on a CUDA stream of their own, to and from pinned memory, while the device computes on another."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def is_here(self, tensor: torch.Tensor) -> bool:
        """Return whether it is not on the host."""
        return tensor.device.type != "cpu"

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return pinned memory: only from there, and to there, copies overlap."""
        return torch.empty_like(tensor, device="cpu", pin_memory=True)

    def begin(self) -> None:
        """Wait, on the stream of the copies, for all that was asked of the device until now."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy on the stream, and let torch's allocators know that it uses the two."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        for tensor in (target, source):
            if tensor.is_cuda:
                tensor.record_stream(self._stream)

    def mark(self) -> Any:
        """Return an event."""
        return self._stream.record_event()

    def hold_device_for(self, mark: Any) -> None:
        """Let the computing stream wait for the event."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def wait(self, mark: Any) -> None:
        """Let the host wait for the event."""
        mark.synchronize()


@functools.cache
def lane_of(device: torch.device) -> Lane:
    """Return the lane between a device and the host."""
    return StreamLane(device) if device.type == "cuda" else DirectLane()
