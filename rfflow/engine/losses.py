"""Workers that were lost: how often, which run each was busy with, and when that has been too often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from rfflow.errors import ConfigError, EngineError
from rfflow.runs.run import Run

MOST_LOSSES = 3
"""How often a worker is replaced, and how often a run may be the one that trained when one was lost."""
MOST_LOSSES_BY_A_BUILD = 2
"""How often a run may be the one that was built when a worker was lost."""


class Losses:
    """Counts for one experiment."""

    def __init__(self) -> None:
        self._of_slot: Counter[int] = Counter()
        self._while_training: Counter[int] = Counter()
        self._while_building: defaultdict[int, list[int]] = defaultdict(list)
        """The slots whose workers were lost while they built a run."""
        self._reasons: dict[int, str] = {}
        """Why the last worker was lost that was busy with a run, by run."""
        self._for_good: set[int] = set()
        self._up: set[int] = set()
        """The slots whose workers have begun."""

    def up(self, slot: int) -> None:
        """Take note of a worker that has begun."""
        self._up.add(slot)

    def add(self, slot: int, reason: str, *, training: int | None, building: int | None, is_for_good: bool) -> None:
        """Take note of a worker that is gone.

        Args:
            slot: where it was.
            reason: why it is, as far as that is known.
            training: the run that trained there.
            building: the run that was built there while none trained.
            is_for_good: whether another one would be lost as well.
        """
        self._of_slot[slot] += 1
        has_begun = slot in self._up
        self._up.discard(slot)
        if is_for_good:
            self._for_good.add(slot)
        elif not has_begun:
            pass  # no run is to blame for it
        elif training is not None:
            self._while_training[training] += 1
            self._reasons[training] = reason
        elif building is not None:
            self._while_building[building].append(slot)
            self._reasons[building] = reason

    def usable(self, slots: Iterable[int]) -> list[int]:
        """Return those of the slots that have not been given up."""
        return [slot for slot in slots if slot not in self._for_good and self._of_slot[slot] <= MOST_LOSSES]

    def failure_of(self, run: Run) -> EngineError | None:
        """Return why a run must not train any more, if workers are lost again and again while it does."""
        if self._while_training[run.number] <= MOST_LOSSES:
            return None
        return EngineError(f"workers are lost again and again while it trains: {self._reasons[run.number]}")

    def where_built(self, run: Run) -> set[int]:
        """Return the slots whose workers were lost while they built a run."""
        return set(self._while_building[run.number])

    def check_build(self, run: Run) -> None:
        """Check that a run may be built once more; else it is to blame, and not the slots.

        Raises:
            ConfigError: if workers are lost by it.
        """
        if len(self._while_building[run.number]) < MOST_LOSSES_BY_A_BUILD:
            return
        lost = self._while_building.pop(run.number)
        self._of_slot.subtract(lost)
        raise ConfigError(
            f"{run.called} cannot be built: {len(lost)} workers were lost while they built it, the last one because "
            f"{self._reasons[run.number]}. What ends a process so is often the memory of the host (the system's log "
            "says so), or a library that crashes; its own words stand above."
        )
