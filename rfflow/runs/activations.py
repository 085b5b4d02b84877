"""What a run does with the activations of its steps, as people are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Activations:
    """Kept for the backward pass, or computed once more there."""

    every: int
    """Every n-th layer recomputes them; 0 is none."""
    why: str
    """The second half of a sentence: "900 kB for 2 x 64 tokens, 3.1 GB free"."""
    is_chosen: bool = False
    """Whether rfflow has chosen (``activation_checkpointing=auto``)."""

    def __str__(self) -> str:
        """Return a word or two, for a column."""
        return "kept" if not self.every else "recomputed" if self.every == 1 else ordinal(self.every)

    @property
    def sentence(self) -> str:
        """What there is to say."""
        if not self.every:
            return f"Activations are kept: {self.why}"
        which = "every layer" if self.every == 1 else f"{ordinal(self.every)} layer"
        return f"Activations of {which} are recomputed: {self.why}"

    @property
    def is_usual(self) -> bool:
        """Whether it is what was set, or what is chosen where there is memory."""
        return not (self.is_chosen and self.every)


def ordinal(every: int) -> str:
    """Return "every 3rd"."""
    ending = "th" if every % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(every % 10, "th")
    return f"every {every}{ending}"


def are_news(found: Iterable[Activations | None]) -> bool:
    """Whether runs differ in this, or one does what was not set for it."""
    known = [one for one in found if one is not None]
    return len({one.every for one in known}) > 1 or not all(one.is_usual for one in known)
