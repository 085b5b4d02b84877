"""What TensorBoard would show of a directory that another process has written, as far as it must not be said twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.util.tensor_util import make_ndarray

BY_CHUNK = "by_chunk/"
STATE = "state"

_SMALL = 40
"""Bytes that a record without any value has at most."""


@dataclass
class Said:
    """What stands in the files."""

    by_chunk: set[tuple[str, int]] = field(default_factory=set)
    """Tags and chunks."""
    state: float | None = None
    """The last."""


def read_said(directory: Path, before: int) -> Said:
    """Read a directory as TensorBoard will once its writer goes on at a step.

    Args:
        directory: holds the files.
        before: points at this step or later will be dropped.
    """
    said: dict[tuple[str, int], float] = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(path)).Load():
            if len(record) > _SMALL and BY_CHUNK.encode() not in record and STATE.encode() not in record:
                continue  # most are of other curves, and need not be read
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                said = {key: value for key, value in said.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.tag.startswith(BY_CHUNK) or value.tag == STATE:
                    said[value.tag, event.step] = _number(value)
    kept = {key: value for key, value in said.items() if key[1] < before}
    states = [value for (tag, _), value in kept.items() if tag == STATE]
    return Said({key for key in kept if key[0] != STATE}, states[-1] if states else None)


def _number(value: object) -> float:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "simple_value":
        return float(value.simple_value)  # type: ignore[attr-defined]
    return float(make_ndarray(value.tensor)) if kind == "tensor" else float("nan")  # type: ignore[attr-defined]
