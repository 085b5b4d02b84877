"""Weights & Biases: a W&B run for each run, in one group for the experiment."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfflow.confidential import without_secrets
from rfflow.errors import ConfigError, nearest
from rfflow.loggers.told import Told
from rfflow.loggers.tracker import Group, TrackedRun, Tracker

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
_STEP, _CHUNK = "step", "by_chunk/chunk"
"""What curves are drawn over."""


class WandbLogger(Tracker):
    """Give everything to Weights & Biases.

    Args:
        project: W&B's project; ``None`` is the experiment's name (``name=...``).
        entity: the user or team that has it; ``None`` is what W&B itself would take.
        mode: ``online``, ``offline`` (files for ``wandb sync``) or ``disabled``; ``None`` is what ``WANDB_MODE`` says,
            else ``online``.
        artifacts: which files to give it, of ``adapter`` and ``timeline``.
        patience: seconds, at most, that the end waits for W&B.

    Raises:
        ConfigError: if wandb is not installed, has no API key, or its server does not take it or is not there.
    """

    kind = "Weights & Biases"

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        artifacts: Collection[str] = ("timeline",),
        patience: float = 30.0,
    ):
        super().__init__(artifacts, patience)
        if mode is not None and mode not in MODES:
            raise ConfigError(f"mode is {mode!r}.{nearest(mode, MODES)} Allowed: null, {', '.join(MODES)}.")
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"wandb cannot be imported ({error}). Install it: pip install 'rfflow[wandb]'") from error
        self._wandb: Any = wandb
        self._is_theirs = wandb.run is not None
        """Whether a user has begun a run before: W&B's own process is to go on then."""
        self._project, self._entity = project, entity
        self._mode = mode or os.environ.get("WANDB_MODE") or "online"
        if self._mode == "online":
            self._check_credentials()
        self._group_of_runs: Group | None = None
        self._told: Told | None = None
        self._open: dict[int | None, Any] = {}
        """W&B's runs by the numbers of ours; None is the experiment's own."""
        self._ended: dict[int, int] = {}
        """Exit codes of runs that are to be finished, once the last word of them has been said."""

    def begin(self, group: Group, run: TrackedRun) -> None:
        """Begin a run, or go on with the one that an earlier process has begun."""
        told = self._told_of(group)
        is_new = not told.has(run.number)
        self._begin(run, {**_nested(run.settings), **_kinship(run)} if is_new else {})
        told.begin(run.number)
        self.tell(run, None)

    def log(self, run: TrackedRun, metrics: Mapping[str, float], step: int, chunk: int | None) -> None:
        """Log metrics at an optimizer step, or at a chunk where one is given."""
        assert self._told is not None, "begin comes first"
        self._ended.pop(run.number, None)
        at = step if chunk is None else chunk
        if new := self._told.unknown(run.number, metrics, at):
            self._of(run).log({**new, _STEP if chunk is None else _CHUNK: at})
            self._told.log(run.number, new, at)
        self._finish_ended()

    def tell(self, run: TrackedRun, op: str | None) -> None:
        """Show a run's state in its summary and tags, and its ops as its notes."""
        assert self._told is not None, "begin comes first"
        theirs = self._of(run)
        theirs.summary.update({"rfflow.state": run.state, "rfflow.chunk": run.chunk})
        if (tags := _tags(run)) != tuple(theirs.tags or ()):
            theirs.tags = tags
        if op is not None:
            self._told.op(run.number, op)
            theirs.notes = "\n".join(f"- {text}" for text in self._told.ops(run.number))

    def keep(self, group: Group, run: TrackedRun | None, path: Path, name: str) -> None:
        """Keep a file or folder as an artifact; what is the experiment's lies with a run of its own."""
        theirs = self._of_all(group) if run is None else self._of(run)
        owner = group.directory if run is None else f"{group.directory}-{run.number}"
        artifact = self._wandb.Artifact(_artifact_name(f"{owner}-{name}"), "model" if name == "adapter" else "timeline")
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        theirs.log_artifact(artifact)
        if path.suffix == ".png":
            theirs.log({path.stem: self._wandb.Image(str(path))})

    def end(self, group: Group, run: TrackedRun) -> None:
        """Finish a run as soon as another logs something: an op may still have a word on it."""
        self._ended[run.number] = 1 if run.state == "failed" else 0

    def has_ended(self, group: Group, run: int) -> bool:
        """Whether a run was finished."""
        return self._told_of(group).has_ended(run)

    def close(self, group: Group, status: str) -> None:
        """Finish every run; another process may go on with those that have not ended."""
        code = 0 if status == "success" else 1
        codes = {number: code if number is not None else 0 for number in self._open} | self._ended
        runs, told, ended = [(own, codes[number]) for number, own in self._open.items()], self._told, self._ended
        self._open, self._ended, self._told = {}, {}, None
        _finish(runs)
        _note_ends(told, ended)

    def finalize(self, status: str) -> None:
        """Hand over what is left, and let W&B's own process end, each within the patience."""
        super().finalize(status)
        self._let_go()

    def _let_go(self) -> None:
        # At Python's exit W&B would wait for its process without a limit; it may not hear that it is to end where it
        # answers at that moment what was given up.
        if self._is_theirs:
            return
        end = threading.Thread(target=self._wandb.teardown, name="the end of W&B's process", daemon=True)
        end.start()
        end.join(self._patience)
        if end.is_alive():
            log.warning("W&B's own process has not ended within %s s. It is ended with this one.", self._patience)

    def _check_credentials(self) -> None:
        if self._is_theirs:
            return  # it has what it needs
        url = self._wandb.setup().settings.base_url
        ways = "loggers.wandb.mode=offline keeps everything in files for `wandb sync`."
        try:
            if not self._wandb.login(prompt=False, verify=True):
                raise ConfigError(f"W&B has no API key for {url}. Say `wandb login`, or set WANDB_API_KEY; {ways}")
        except self._wandb.errors.Error as error:
            self._let_go()
            text = " ".join(without_secrets(str(error)).split())[:300]
            raise ConfigError(f"W&B at {url}: {text}. Look at WANDB_API_KEY and WANDB_BASE_URL; {ways}") from error

    def _told_of(self, group: Group) -> Told:
        if self._told is None:
            self._group_of_runs, self._told = group, Told(group.root / "wandb.jsonl")
        return self._told

    def _of(self, run: TrackedRun) -> Any:
        return self._open[run.number] if run.number in self._open else self._begin(run, {})

    def _begin(self, run: TrackedRun, config: Mapping[str, Any]) -> Any:
        assert self._group_of_runs is not None, "begin comes first"
        self._open[run.number] = self._init(self._group_of_runs, str(run.number), run.name, config, _tags(run))
        return self._open[run.number]

    def _of_all(self, group: Group) -> Any:
        if None not in self._open:
            self._open[None] = self._init(group, "all", group.directory, {}, ())
        return self._open[None]

    def _init(self, group: Group, number: str, name: str, config: Mapping[str, Any], tags: tuple[str, ...]) -> Any:
        theirs = self._wandb.init(
            project=self._project or group.name,
            entity=self._entity,
            group=group.directory,
            job_type="experiment" if number == "all" else "run",
            id=f"{group.id}-{number}",
            name=name,
            config=dict(config),
            tags=tags,
            mode=self._mode,
            resume=None if self._mode == "offline" else "allow",  # offline, `wandb sync` puts together what has one id
            reinit="create_new",
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,  # the command line, which may hold secrets
                x_disable_stats=True,  # the machine's, once for every run
                init_timeout=max(1.0, self._patience),
                finish_timeout=max(1.0, self._patience),
                finish_timeout_raises=True,  # else what a server that is gone has missed is lost in silence
            ),
        )
        self._wandb.setup().remove_active_run(theirs)  # else the next wandb.init() of a trainer or a user returns it
        for axis in (_STEP, _CHUNK):
            theirs.define_metric(axis, hidden=True)
        for names, axis in {"train/*": _STEP, "eval/*": _STEP, "chunk": _STEP, "by_chunk/*": _CHUNK}.items():
            theirs.define_metric(names, step_metric=axis)
        return theirs

    def _finish_ended(self) -> None:
        ended, self._ended = self._ended, {}
        _finish([(self._open.pop(number), code) for number, code in ended.items() if number in self._open])
        _note_ends(self._told, ended)


def _finish(runs: Sequence[tuple[Any, int]]) -> None:
    """Finish all of these with their exit codes; raise afterwards what one of them has raised."""
    errors = []
    for theirs, code in runs:
        try:
            theirs.finish(exit_code=code)
        except Exception as error:  # W&B's, or that it has timed out
            errors.append(error)
    if errors:
        raise errors[0]


def _note_ends(told: Told | None, runs: Iterable[int]) -> None:
    if told is not None:
        for run in runs:
            told.end(run)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted names as W&B groups them; which config of a group was chosen stands in the group."""
    found: dict[str, Any] = {}
    for name in sorted(settings, key=lambda name: name.count("."), reverse=True):
        *groups, last = name.split(".")
        node = found
        for group in groups:
            node = node.setdefault(group, {})
        if isinstance(node.get(last), dict):
            node[last]["chosen"] = settings[name]
        else:
            node[last] = settings[name]
    return found


def _kinship(run: TrackedRun) -> dict[str, Any]:
    return {"rfflow": {"run": run.number, "parent": run.parent, "chunks_before": run.chunks_before}}


def _tags(run: TrackedRun) -> tuple[str, ...]:
    return ("clone",) * (run.parent is not None) + (run.state,)


def _artifact_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:128]
