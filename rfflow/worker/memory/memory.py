"""Where suspended runs keep their tensors: on the device, on the host, on disk.

A run owns few tensors when it trains an adapter on a shared base, and all of them when it trains every weight. What a
suspended run owns moves away when the device, or the host, is full, and comes back before its next chunk. What cannot
fit even so is refused before it trains.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from lightning_fabric import Fabric

from rfflow.config.spec import MemorySpec
from rfflow.errors import ConfigError
from rfflow.worker.memory.allocator import map_each_block
from rfflow.worker.memory.offload import RunTensors, Tier
from rfflow.worker.memory.sizes import Need, free_bytes, loaded_bytes, parse_bytes, show_bytes

log = logging.getLogger(__name__)


class Memory:
    """Keeps the runs' tensors within the limits, the ones needed soonest nearest."""

    def __init__(
        self, fabric: Fabric, spec: MemorySpec, free: Callable[[torch.device], int] = free_bytes, sharers: int = 1
    ):
        """Move nothing yet.

        Args:
            fabric: which has the device.
            spec: the limits.
            free: tells the bytes that are free on a device.
            sharers: how many workers train in the same memory.
        """
        self._sharers = sharers
        self._device = fabric.device
        self._is_cpu = fabric.device.type == "cpu"
        self._free = free
        limit = parse_bytes(spec.device_limit, "engine.memory.device_limit")
        if spec.device_limit is not None and limit == 0:
            raise ConfigError("engine.memory.device_limit is 0, so nothing could train. Leave it out for what is free.")
        self._limit = limit or None
        """What runs may hold on the device; ``None`` is whatever is free when it is asked for."""
        # Half of what is free: the rest is for what training itself takes, and for other programs.
        self.host_limit = (
            free(torch.device("cpu")) // 2
            if spec.host_limit is None
            else parse_bytes(spec.host_limit, "engine.memory.host_limit")
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rfflow-fetch")
        self._peak = 0
        self.suspended: Callable[[], Sequence[RunTensors]] = lambda: ()
        """Returns what can be moved away now, soonest needed first."""

    @property
    def is_unlimited(self) -> bool:
        """Whether what is free is all that limits runs."""
        return self._limit is None

    # --- what does not fit at all -------------------------------------------------------------------------------------

    def require(self, need: Need, what: str, there: int = 0, *, advice: str = "A smaller model needs less.") -> None:
        """Refuse a run that cannot fit even when every other run is moved away; make room for its weights.

        Args:
            need: all that the run takes.
            what: how to name it.
            there: how much of it is there already.
            advice: a sentence on what needs less.

        Raises:
            ConfigError: with the figures.
        """
        free, others = self._free(self._device), self._held(self.suspended())
        if self._limit is not None:  # whoever sets one knows better than what is measured: of swap, say
            if need.total > self._limit:
                where = f"{show_bytes(self._limit)} are there for runs (engine.memory.device_limit)"
                self._refuse(need, what, where, advice)
        elif need.total - there > free + others:
            moved = f" and {show_bytes(others)} of other runs that could be moved away" if others else ""
            already = f" (besides the {show_bytes(there)} that it has)" if there else ""
            self._refuse(need, what, f"only {show_bytes(free)} are free{moved}{already}", advice)
        self._clear(need.weights - there)

    def left(self, coming: int) -> int:
        """Return the bytes that are there for a step besides what runs own, with every other run moved away.

        Args:
            coming: what the run itself will still take.
        """
        if self._limit is not None:
            return self._limit - coming
        return self._free(self._device) // self._sharers + self._held(self.suspended()) - coming

    def require_base(self, name: str, kwargs: Mapping[str, Any]) -> None:
        """Refuse a base model that cannot be loaded, before it is: into the host's memory, and from there.

        Raises:
            ConfigError: with the figures.
        """
        need = loaded_bytes(name, kwargs)
        if need is None:
            return
        for device in dict.fromkeys((torch.device("cpu"), self._device)):
            others = self._held(self.suspended()) if device == self._device else 0
            free = self._free(device)
            if need > free + others:
                moved = f" and {show_bytes(others)} of other runs could be moved away" if others else ""
                raise ConfigError(
                    f"model.name is {name!r}: its weights take {show_bytes(need)} as {kwargs.get('dtype', 'float32')}, "
                    f"but only {show_bytes(free)} are free on the {device.type}{moved}. model.dtype=bfloat16 takes "
                    "half of float32; a model.quantization_config or a smaller model takes less."
                )
        self._clear(need)

    def _refuse(self, need: Need, what: str, there: str, advice: str) -> None:
        raise ConfigError(
            f"{what} needs {show_bytes(need.total)} on the {self._device.type} (weights {show_bytes(need.weights)}, "
            f"gradients {show_bytes(need.gradients)}, optimizer {show_bytes(need.optimizer)}), but {there}. "
            f"{advice}"
        )

    def _held(self, holdings: Iterable[RunTensors]) -> int:
        """Return the bytes that are on the device, or on their way there."""
        return sum(one.bytes for one in holdings if one.is_on_device)

    def _clear(self, wanted: int) -> None:
        """Move others away until so many bytes are free, the least urgent first."""
        for other in reversed(self.suspended()):
            if self._free(self._device) >= wanted:
                break
            if other.is_on_device and other.bytes:
                other.leave_device()
                if self._is_cpu and not self._try_disk(other):
                    return

    # --- whose turn it is ---------------------------------------------------------------------------------------------

    def make_room(self, wanted: RunTensors, others: Sequence[RunTensors], beside: Sequence[RunTensors] = ()) -> None:
        """Bring a run's tensors to the device.

        Args:
            wanted: the run that trains now.
            others: the other runs, soonest needed first, stopped ones last.
            beside: those that train at once with it, and are there.
        """
        if not self._is_cpu:
            for other in reversed(others):
                if self._missing([wanted, *beside], others) <= 0:
                    break
                if other.is_on_device:
                    other.leave_device()
        self.keep_within_host(others)
        wanted.move_to(Tier.DEVICE)

    def _missing(self, wanted: Sequence[RunTensors], others: Sequence[RunTensors]) -> int:
        """Return the bytes that the device lacks to hold these runs, and train with what training took so far."""
        coming = sum(run.coming for run in wanted) + self._peak
        if self._limit is not None:
            return sum(run.bytes for run in wanted) + coming + self._held(others) - self._limit
        return sum(run.bytes for run in wanted if not run.is_on_device) + coming - self._free(self._device)

    def keep_within_host(self, suspended: Sequence[RunTensors]) -> None:
        """Move what the host has no room for to disk, the least urgent first."""
        tier = Tier.DEVICE if self._is_cpu else Tier.HOST
        used = sum(holdings.bytes for holdings in suspended if holdings.tier is tier)
        for holdings in reversed(suspended):
            if used <= self.host_limit:
                break
            if holdings.tier is tier and holdings.bytes:
                if not self._try_disk(holdings):
                    return
                used -= holdings.bytes

    def _try_disk(self, holdings: RunTensors) -> bool:
        try:
            holdings.move_to(Tier.DISK)
        except OSError as error:  # the run stays as it was, and whole
            log.warning("Cannot move a suspended run to disk, so it stays in memory: %s", error)
            return False
        return True

    def fetch_ahead(
        self, training: RunTensors, others: Sequence[RunTensors], beside: Sequence[RunTensors] = ()
    ) -> None:
        """Bring the next run nearer while the current one trains: from disk to the host, or from there to the device.

        Args:
            training: the run that trains now.
            others: the other runs, the next one first.
            beside: those that train at once with it.
        """
        upcoming, rest = others[0], others[1:]
        upcoming.fetch_ahead(self._pool)
        # How much training takes besides is known only once a chunk has been measured.
        if self._is_cpu or upcoming.tier is not Tier.HOST or not self._peak:
            return
        now = [training, *beside, upcoming]
        if self._missing(now, rest) > self._held(rest):
            return  # the two do not fit side by side
        for other in reversed(rest):
            if self._missing(now, rest) <= 0:
                break
            if other.tier is Tier.DEVICE:
                other.move_to(Tier.HOST, wait=False)
        upcoming.copy_ahead()

    def observe(self) -> None:
        """Measure, after a chunk, what training takes besides the tensors that runs own."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
            self._peak = max(self._peak, peak)
            torch.cuda.reset_peak_memory_stats(self._device)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cpu":
        map_each_block()
    else:
        torch.get_device_module(device).empty_cache()


def out_of_memory_advice(error: BaseException, device: torch.device) -> str:
    """Say what a run lacked and what it might try."""
    free = f" {show_bytes(free_bytes(device))} are free on the {device.type} now."
    first = " ".join(str(error).split())[:300]
    return (
        f"out of memory, also with every other run moved away: {first}{free} Try a smaller "
        "trainer.args.per_device_train_batch_size with a larger trainer.args.gradient_accumulation_steps, a smaller "
        "trainer.args.max_length, trainer.args.activation_checkpointing=true, an adapter (peft=lora) or a smaller "
        "dtype."
    )
