"""``experiment.json``: what an experiment is, besides the checkpoints of its runs, so that it can be gone on with.

How far a live run is, its checkpoints say; how far one is that has ended, this file says. The file is replaced in one
move at every boundary and behind every op, and an op is applied once it is in here: its line in the journal and its
file in ``done/`` follow, after a crash too.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rfflow.checkpointing.starting import Command
from rfflow.config.spec import EXPERIMENT_KEYS, Objective
from rfflow.control.journal import Entry, Past
from rfflow.errors import ConfigError
from rfflow.runs.activations import Activations
from rfflow.runs.chunks import ChunkPlan, ChunkResult
from rfflow.runs.run import Run, RunState

VERSION = 2
_READABLE = (1, 2)
"""The first did not say how the experiment was started."""

_CHUNK = tuple(one.name for one in fields(ChunkResult) if one.name != "answers")
"""All that is known of a chunk but the answers, which are for people to read and are in the trackers."""


class DamagedState(ConfigError):
    """``experiment.json`` is not what was written."""


@dataclass(frozen=True)
class RunRecord:
    """A run as it was when the file was written."""

    number: int
    state: RunState
    overrides: tuple[str, ...]
    """The overrides that set it apart, for people."""
    job: tuple[str, ...] | None
    """All overrides of its Hydra job; ``None`` where it came from no configuration."""
    directory: str
    """Its own directory, relative to the experiment's where it lies inside."""
    parent: int | None = None
    first_chunk: int = 0
    chunks_before: int = 0
    is_warm: bool = False
    """Whether it started from its parent's weights, of which it has a copy."""
    start_step: int | None = None
    """The step at which its parent had those weights."""
    done: int = 0
    """Chunks that everybody has heard of; its last checkpoint may be older."""
    ahead: float = 0
    """Its fair share used so far, less the chunks that it has done."""
    config: str = "{}"
    """The configuration as it may be shown, less what belongs to the experiment, as JSON."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of values that are not shown there, to be compared, by dotted names."""
    error: tuple[str, str] | None = None
    """What a failed run failed of: the kind of error and its message."""
    chunks: tuple[ChunkResult, ...] = ()
    """Of a run that has ended."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    logs: int = 0
    """How often it has logged; of a live run, its checkpoint says that."""
    plan: ChunkPlan | None = None
    recomputes: bool = False
    """Whether it recomputes activations since it ran out of memory."""
    activations: Activations | None = None
    """What it does with them, where that is known."""

    def path(self, root: Path) -> Path:
        """Return its directory, where the experiment's is ``root``."""
        return root.absolute() / self.directory


@dataclass(frozen=True)
class OpOutcome:
    """An op file that has been answered: what goes into the journal, and where the file goes."""

    file: str
    stamp: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class SavedExperiment:
    """The file's content."""

    name: str
    started: float
    runs: tuple[RunRecord, ...] = ()
    answer: OpOutcome | None = None
    """The last op file that was answered; its journal lines may be missing yet."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the rows, by data set."""
    versions: Mapping[str, str] = field(default_factory=dict)
    is_finished: bool = False
    id: str = ""
    """The experiment's own, which its checkpoints bear; empty where it was begun before there was one."""
    imagined: tuple[tuple[int, Past], ...] = ()
    """What a policy would have done in a dry run, each op with its place among those that were applied."""
    program: tuple[str, ...] | None = None
    """How Python is told to run the program that it belongs to; empty where there is nothing that could be run."""
    command: Command | None = None
    """What that program was told."""
    objective: Objective | None = None
    """What ranks the runs; the version before left it out."""

    def run(self, number: int) -> RunRecord | None:
        """Return a run, or None where there is none of that number."""
        return next((run for run in self.runs if run.number == number), None)

    def check_data(self, data: Mapping[str, str]) -> None:
        """Check that the rows are those that the runs have seen.

        Raises:
            ConfigError: naming the data set that is another.
        """
        for key, fingerprint in data.items():
            if self.data.get(key, fingerprint) != fingerprint:
                raise ConfigError(
                    f"The rows of the data set {key} are not those that the experiment was started with (fingerprint "
                    f"{fingerprint} instead of {self.data[key]}), so its runs cannot be gone on with. Give the old "
                    "rows back, or start a new experiment."
                )


def read(path: Path) -> SavedExperiment | None:
    """Read the file; None where there is none.

    Raises:
        DamagedState: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedState(f"{path} cannot be read: {error}.") from error
    head, _, body = text.partition("\n")
    try:
        check = json.loads(head)
        if check["version"] not in _READABLE:
            raise DamagedState(
                f"{path} was written by another version of rfflow: format {check['version']}. This one reads "
                f"{' and '.join(map(str, _READABLE))}."
            )
        if check["crc32"] != zlib.crc32(body.encode()):
            raise ValueError("its checksum does not fit")
        return _from_plain(json.loads(body))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedState(
            f"{path} is damaged ({error}), so the experiment cannot be gone on with. The runs' checkpoints, by default "
            f"in {path.parent}/runs/*/checkpoints, are not touched by this."
        ) from error


def write(path: Path, saved: SavedExperiment, texts: Mapping[int, str], *, is_first: bool = False) -> None:
    """Replace the file in one move; when this returns it is on the disk.

    Args:
        path: the file.
        saved: the content.
        texts: runs as :func:`run_text` gives them, where somebody has them.
        is_first: whether the file need not be there; anywhere else it was taken away under us.

    Raises:
        OSError: if it cannot be written, or is gone.
    """
    if not is_first and not path.exists():
        raise FileNotFoundError(f"{path} is gone: something removed the experiment's directory while it ran")
    head = {
        "name": saved.name,
        "id": saved.id,
        "started": saved.started,
        "is_finished": saved.is_finished,
        "versions": saved.versions,
        "data": saved.data,
        "answer": saved.answer and asdict(saved.answer),
        "imagined": [(place, asdict(op)) for place, op in saved.imagined],
        "program": saved.program,
        "command": saved.command and asdict(saved.command),
        "objective": saved.objective and asdict(saved.objective),
    }
    runs = ",\n".join(texts.get(run.number) or run_text(run) for run in saved.runs)
    body = f'{json.dumps(head)[:-1]},\n"runs": [\n{runs}\n]}}\n'
    aside = path.with_name(f".{path.name}.new")
    # Others need not read what was typed. Whoever may, if the owner has said so since, still may; but nobody may write.
    mode = 0o600 if is_first or not path.exists() else stat.S_IMODE(path.stat().st_mode) & ~0o022
    aside.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(aside, flags, 0o600), "w", encoding="utf-8") as file:
        if mode != 0o600:
            with suppress(OSError):  # of a mount that keeps no modes
                os.fchmod(file.fileno(), mode)
        file.write(json.dumps({"version": VERSION, "crc32": zlib.crc32(body.encode())}) + "\n" + body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def run_text(run: RunRecord) -> str:
    """Return a run as it stands in the file."""
    plain = {key: getattr(run, key) for key in RunRecord.__dataclass_fields__}
    plain["state"] = run.state.value
    plain["chunks"] = [_chunk(chunk) for chunk in run.chunks]
    plain["plan"] = run.plan and asdict(run.plan)
    plain["activations"] = run.activations and asdict(run.activations)
    return json.dumps(plain)


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as text that can be compared: without what may change between two processes."""
    own = {key: value for key, value in config.items() if key not in EXPERIMENT_KEYS}
    if isinstance(section := own.get("rfflow"), Mapping):  # of an app that has a configuration of its own
        own["rfflow"] = {key: value for key, value in section.items() if key not in EXPERIMENT_KEYS}
    return json.dumps(own, sort_keys=True, default=str)


def progress_of(run: Run) -> dict[str, Any]:
    """Return how far a run is, for its checkpoint."""
    metrics, logged_at = dict(run.metrics), dict(run.logged_at)
    return {
        "chunks": [_chunk(chunk) for chunk in run.chunks],
        "metrics": metrics,
        "logged_at": logged_at,
        "logs": run.logs,
    }


def chunks_from(plain: Sequence[Mapping[str, Any]]) -> list[ChunkResult]:
    """Read chunks back."""
    return [ChunkResult(**chunk) for chunk in plain]


def _chunk(chunk: ChunkResult) -> dict[str, Any]:
    plain = {name: getattr(chunk, name) for name in _CHUNK}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def _from_plain(plain: dict[str, Any]) -> SavedExperiment:
    answer, program, command = plain.pop("answer"), plain.pop("program", None), plain.pop("command", None)
    imagined = tuple((place, Past(**op)) for place, op in plain.pop("imagined", ()))
    if answer is not None:
        answer = OpOutcome(answer["file"], answer["stamp"], tuple(Entry(**entry) for entry in answer["entries"]))
    runs = []
    for run in plain.pop("runs"):
        run["state"] = RunState(run["state"])
        run["overrides"] = tuple(run["overrides"])
        run["job"] = None if run["job"] is None else tuple(run["job"])
        run["error"] = run["error"] and tuple(run["error"])
        run["chunks"] = tuple(chunks_from(run["chunks"]))
        run["plan"] = run["plan"] and ChunkPlan(tuple(run["plan"]["ends"]), run["plan"]["per_epoch"])
        if activations := run.get("activations"):  # an older file says nothing of them
            run["activations"] = Activations(**activations)
        runs.append(RunRecord(**run))
    program = None if program is None else tuple(program)
    if (objective := plain.pop("objective", None)) is not None:
        plain["objective"] = Objective(**objective)
    if command is not None:
        lists = {key: tuple(value) for key, value in command.items() if isinstance(value, list)}
        command = Command(**{**command, **lists})
    return SavedExperiment(
        runs=tuple(runs), answer=answer, program=program, command=command, imagined=imagined, **plain
    )
