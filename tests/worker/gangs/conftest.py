"""What tests of gangs look at."""

from __future__ import annotations

import pytest

from rfflow.worker.gangs.gang import Gang


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Collect which runs went forward in one pass."""
    found: list[tuple[int, ...]] = []
    go = Gang._pass

    def note(self: Gang, places: object) -> object:
        found.append(tuple(sorted(place.run for place in places)))  # type: ignore[attr-defined]
        return go(self, places)  # type: ignore[arg-type]

    monkeypatch.setattr(Gang, "_pass", note)
    return found
