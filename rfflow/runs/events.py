"""What a worker is told to do, and what it tells: values that go through a queue or a wire alike. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfflow.config.claims import Held
from rfflow.runs.activations import Activations
from rfflow.runs.chunks import Answer, ChunkPlan
from rfflow.runs.forecast import Forecast
from rfflow.runs.run import RunCard

Log = tuple[int, Mapping[str, float]]  # the step, and what the trainer logged there


@dataclass(frozen=True)
class Ready:
    """The trainer has counted its steps and is about to take the first."""

    plan: ChunkPlan
    expected: ExpectedMetrics | None = None
    """What is known of the metrics to come."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the rows that were read so far where it stands, by data set."""
    held: Held = field(default_factory=lambda: Held())
    """What no other run may have."""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the classes of its configuration take, by their dotted names, where that has not been told."""
    forecast: Forecast = Forecast()  # noqa: RUF009  # frozen
    """What it will ask of servers."""
    activations: Activations | None = None
    """What it does with them; ``None`` where nobody has looked."""


@dataclass(frozen=True)
class Progress:
    """In the middle of a chunk; resume it at once."""

    step: int
    logs: tuple[Log, ...]
    can_checkpoint: bool = False
    """Whether a resume from here is exact."""
    is_left: bool = False
    """Whether the turn is over here, because there was hurry, or no money."""
    paused: str | None = None
    """Why it cannot go on before somebody changes the experiment's limits."""


@dataclass(frozen=True)
class Boundary:
    """A chunk is done."""

    step: int
    logs: tuple[Log, ...]
    metrics: Mapping[str, float]
    answers: tuple[Answer, ...] = ()
    running: Mapping[str, float] = field(default_factory=dict)
    """Means of what a TRL trainer has counted since it logged last."""
    is_finite: bool = True
    """Whether the weights that are trained are all numbers."""
    started: float = 0.0
    """Seconds since the epoch at which the chunk began..."""
    ended: float = 0.0
    """... and at which it ended."""
    own: float | None = None
    """Seconds of that which are the run's, where it had the device together with others."""
    switch: float = 0.0
    """Seconds of that spent on restoring and saving the run's context."""

    @property
    def has_nan(self) -> bool:
        """Whether the loss, or a weight, is not a number any more."""
        loss = self.metrics.get("loss")
        return not self.is_finite or (loss is not None and loss != loss)


@dataclass(frozen=True)
class Finished(Boundary):
    """The last chunk is done, and the trainer with it."""


Pause = Ready | Progress | Boundary


@dataclass(frozen=True)
class Again:
    """The memory was not enough, and the run goes on once more from its last checkpoint."""

    step: int
    recomputes: bool = False
    """Whether its activations are recomputed from now on."""


@dataclass(frozen=True)
class Failed:
    """The run raised, and its turn is over."""

    error: BaseException
    is_disk_trouble: bool = False
    """Whether it is the disk's fault, by which every other run would fail, too."""


@dataclass(frozen=True)
class Refused:
    """The run could not be built, or not be given the weights that it should start from."""

    error: BaseException


@dataclass(frozen=True)
class Taken:
    """A clone that was built has its parent's newest weights."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int


@dataclass(frozen=True)
class Unsaved:
    """Something that must be kept could not be written."""

    what: str
    error: BaseException


@dataclass(frozen=True)
class Up:
    """A worker is there."""

    pid: int
    device: str


@dataclass(frozen=True)
class Said:
    """A worker logged something that people should read where they look."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and all that it held; what is on the disk is there."""

    reason: str
    is_for_good: bool = False
    """Whether another one would not even begin there."""


Event = Pause | Again | Failed | Refused | Taken | Saved | Unsaved | Up | Said | Lost


@dataclass(frozen=True)
class Heard:
    """An event, and where it comes from."""

    slot: int
    run: int | None
    event: Event


@dataclass(frozen=True)
class ExpectedMetrics:
    """What is known of a run's metrics."""

    names: frozenset[str]
    evaluates: bool
    """Whether anything is evaluated or generated, so that there are metrics whose names begin with ``eval_``."""
    is_complete: bool
    """Whether it logs nothing else."""
    is_complete_for_evaluation: bool
    """The same of the metrics whose names begin with ``eval_``."""
    offered: frozenset[str] = frozenset()
    """Those of the names that people may be offered: not what another configuration would log."""
    evaluation_sets: tuple[str, ...] = ()
    """The names of several evaluation sets; ``eval_loss`` is the mean of theirs."""

    def may_have(self, metric: str) -> bool:
        """Whether the run may log a metric."""
        is_complete = self.is_complete_for_evaluation if metric.startswith("eval_") else self.is_complete
        return metric in self.names or not is_complete


@dataclass(frozen=True)
class WarmStart:
    """Where a clone takes its weights from, and where in the epoch it begins."""

    parent: int
    weights: Path
    """The parent's weights at its last boundary."""
    first_chunk: int
    """The chunk of the epoch that comes first; the others follow, wrapping round."""


# --- commands; they are carried out in order, and answered by events --------------------------------------------------


@dataclass(frozen=True)
class Prepare:
    """Build a run up to its next step. Answered by :class:`Ready` or :class:`Refused`."""

    card: RunCard
    hydra: Any = None
    """What ``HydraConfig`` holds for the run."""
    start: WarmStart | None = None
    checkpoint: Path | None = None
    """Where it goes on from."""
    step: int = 0
    """The step at which that is."""
    is_at_boundary: bool = False
    """Whether that is the end of a chunk, whose weights clones may ask for."""
    only_if_light: bool = False
    """Refuse what brings more than an adapter to a base that is there: another run is in the middle of its chunk."""
    upcoming: tuple[int, ...] = ()
    """The runs that will train there, the next one first."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """USD that the experiment has spent so far, by the keys of its limits."""

    @property
    def run(self) -> int:
        """The run's number."""
        return self.card.number


@dataclass(frozen=True)
class Warm:
    """Give a run that was built the weights of its parent once more. Answered by :class:`Taken` or :class:`Refused`."""

    run: int
    start: WarmStart


@dataclass(frozen=True)
class Train:
    """Train a chunk. Answered by :class:`Progress`, :class:`Again`, and in the end a boundary or :class:`Failed`."""

    run: int
    done: int
    """The step that ended its last chunk."""
    is_saved: bool
    """Whether a checkpoint is begun at the boundary; :class:`Commit` ends it."""
    upcoming: tuple[int, ...] = ()
    """The runs that will train here, the next one first."""
    beside: tuple[Train, ...] = ()
    """Those that have the slot together with it, each answered for itself; they may go together, step by step."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """What the run finds in its environment from now on, besides what it has."""


@dataclass(frozen=True)
class Commit:
    """Write the checkpoint that was begun, beside whatever trains next. Answered by :class:`Saved`."""

    run: int
    progress: Mapping[str, Any]
    keep: frozenset[int]
    """The steps of the run's checkpoints that stay."""


@dataclass(frozen=True)
class SaveNow:
    """Write a checkpoint of a run as it stands. Answered by :class:`Saved`."""

    run: int
    step: int
    progress: Mapping[str, Any]
    keep: frozenset[int]


@dataclass(frozen=True)
class LeaveDevice:
    """Move what a run holds off the device. Not answered."""

    run: int
    upcoming: tuple[int, ...] = ()


@dataclass(frozen=True)
class GiveUp:
    """Let go of a run's trainer, if it is there. Not answered."""

    run: int


Command = Prepare | Warm | Train | Commit | SaveNow | LeaveDevice | GiveUp
