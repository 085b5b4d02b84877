"""Who trains next? Pure decisions: knows runs, chunks and slots; never sees torch, a clock or a disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assignment:
    """A run trains on a chunk in a slot."""

    run: int
    chunk: int
    """The run's own count of chunks, from 0, epochs counted through."""
    slot: int = 0


@dataclass
class _Entry:
    chunks: int
    done: int = 0
    turns: float = 0
    """Fair share used so far: a run that joins late starts level with those who have had the fewest turns."""
    is_waiting: bool = True
    slot: int | None = None


class Scheduler:
    """Give every live run the same number of turns, lowest number first among equals.

    All runs see chunk 0 before any sees chunk 1, so that they can be compared early. A run that is added or resumed
    later gets its turns from then on; it does not first make up for the turns it missed.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __contains__(self, run: int) -> bool:
        return run in self._entries

    @property
    def is_idle(self) -> bool:
        """Whether no run waits for a slot and none holds one."""
        return not any(entry.is_waiting or entry.slot is not None for entry in self._entries.values())

    def add(self, run: int, chunks: int, done: int = 0, ahead: float | None = None) -> None:
        """Let a run take part, with ``chunks`` chunks of which ``done`` lie behind it.

        With ``ahead``, as :meth:`ahead` gave it in another process, it has used as much of its fair share as there.
        """
        assert run not in self._entries, f"run {run} is scheduled already"
        assert 0 <= done < chunks, f"run {run} has {chunks - done} chunks left"
        self._entries[run] = _Entry(chunks, done, self._fewest_turns() if ahead is None else done + ahead)

    def next(self, slot: int = 0) -> Assignment | None:
        """Return what the free slot does now, or ``None`` when no run waits."""
        run = next((run for run in self.upcoming() if self._entries[run].slot is None), None)
        if run is None:
            return None
        entry = self._entries[run]
        entry.slot = slot
        return Assignment(run, entry.done, slot)

    def ahead(self, run: int) -> float:
        """Return what a run has used of its fair share, less the chunks it has done; 0 for one that is not here."""
        entry = self._entries.get(run)
        return 0 if entry is None else entry.turns - entry.done

    def upcoming(self) -> list[int]:
        """Return the runs that wait, in the order in which they would get a slot."""
        return [
            run for _, run in sorted((entry.turns, run) for run, entry in self._entries.items() if entry.is_waiting)
        ]

    def finish(self, assignment: Assignment) -> None:
        """The chunk is done and the slot is free; a run leaves by itself after its last chunk."""
        entry = self._entries[assignment.run]
        assert entry.slot == assignment.slot and entry.done == assignment.chunk, f"{assignment} was not given out"
        entry.slot = None
        entry.done += 1
        entry.turns += 1
        if entry.done == entry.chunks:
            del self._entries[assignment.run]

    def stop(self, run: int) -> None:
        """Keep the run off the slots, from its next boundary on."""
        self._entries[run].is_waiting = False

    def resume(self, run: int) -> None:
        """Let a stopped run take part again, from its next chunk on."""
        entry = self._entries[run]
        entry.turns = max(entry.turns, self._fewest_turns())
        entry.is_waiting = True

    def remove(self, run: int) -> None:
        """Forget a run that failed, was deleted, or ended before its last chunk. Its slot is free."""
        self._entries.pop(run, None)

    def _fewest_turns(self) -> float:
        return min((entry.turns for entry in self._entries.values() if entry.is_waiting), default=0)
