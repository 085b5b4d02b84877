"""Trackio: a run of Trackio's for each run, in one group for the experiment."""

from __future__ import annotations

import builtins
import contextvars
import os
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rfflow.confidential import without_secrets
from rfflow.errors import ConfigError
from rfflow.loggers.hparams import STATES
from rfflow.loggers.told import Told
from rfflow.loggers.tracker import Group, TrackedRun, Tracker
from rfflow.runs.run import RunState

_silent: set[int] = set()
"""Threads for which Trackio prints nothing: the terminal is the experiment's."""
_LOCAL = "without either everything stays on this machine."


class TrackioLogger(Tracker):
    """Give everything to Trackio.

    Args:
        project: Trackio's project; ``None`` is the experiment's name (``name=...``).
        space_id: a Space of Hugging Face's to show it; ``None`` is what ``TRACKIO_SPACE_ID`` says, else none.
        server_url: a Trackio server; ``None`` is what ``TRACKIO_SERVER_URL`` says, else files on this machine.
        artifacts: which files to give it, of ``adapter`` and ``timeline``.
        patience: seconds, at most, that the end waits for Trackio.

    Raises:
        ConfigError: if trackio is not installed, or the server or the Space cannot be had.
    """

    kind = "Trackio"

    def __init__(
        self,
        project: str | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
        artifacts: Collection[str] = ("timeline",),
        patience: float = 30.0,
    ):
        super().__init__(artifacts, patience)
        try:
            import trackio
        except ImportError as error:
            raise ConfigError(
                f"trackio cannot be imported ({error}). Install it: pip install 'rfflow[trackio]'"
            ) from error
        self._trackio: Any = trackio
        self._project, self._space_id, self._server_url = project, space_id, server_url
        _check_place(space_id, server_url)
        _quieten(trackio)
        self._group_of_runs: Group | None = None
        self._told: Told | None = None
        self._configs: dict[int, dict[str, Any]] = {}
        self._states: dict[int, str] = {}
        self._open: dict[int | None, Any] = {}
        """Trackio's runs by the numbers of ours; None is the experiment's own."""

    def begin(self, group: Group, run: TrackedRun) -> None:
        """Begin a run, or go on with the one that an earlier process has begun."""
        told = self._told_of(group)
        kinship = {"rfflow.run": run.number, "rfflow.parent": run.parent, "rfflow.chunks_before": run.chunks_before}
        self._configs[run.number] = {key.lstrip("_"): value for key, value in run.settings.items()} | kinship
        self._begin(run)
        told.begin(run.number)
        self.tell(run, None)

    def log(self, run: TrackedRun, metrics: Mapping[str, float], step: int, chunk: int | None) -> None:
        """Log metrics at an optimizer step, or at a chunk where one is given."""
        assert self._told is not None, "begin comes first"
        at = step if chunk is None else chunk
        if new := self._told.unknown(run.number, metrics, at):
            self._of(run).log(new, step=at)
            self._told.log(run.number, new, at)

    def tell(self, run: TrackedRun, op: str | None) -> None:
        """Show a run's state as a curve and, like its ops, as an alert."""
        theirs = self._of(run)
        if run.state != self._states.get(run.number):
            self._states[run.number] = run.state
            theirs.log({"rfflow.state": STATES[RunState(run.state)]}, step=run.step)
            theirs.alert(title=run.state, text=f"run {run.name}", level=_level(self._trackio, run.state), step=run.step)
        if op is not None:
            theirs.alert(title="op", text=op, level=self._trackio.AlertLevel.INFO, step=run.step)

    def keep(self, group: Group, run: TrackedRun | None, path: Path, name: str) -> None:
        """Keep a file or folder as an artifact; what is the experiment's lies with a run of its own."""
        theirs = self._of_all(group) if run is None else self._of(run)
        if path.suffix == ".png":
            theirs.log({path.stem: self._trackio.Image(str(path))})
        owner = group.directory if run is None else f"{group.directory}-{run.number}"
        kind = "model" if name == "adapter" else "timeline"
        artifact = self._trackio.Artifact(re.sub(r"[^A-Za-z0-9._-]", "-", f"{owner}-{name}"), kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        theirs.log_artifact(artifact)

    def end(self, group: Group, run: TrackedRun) -> None:
        """Finish a run; what an op has to say of it afterwards takes it up again."""
        self._open.pop(run.number).finish()
        self._told_of(group).end(run.number)

    def has_ended(self, group: Group, run: int) -> bool:
        """Whether a run was finished."""
        return self._told_of(group).has_ended(run)

    def close(self, group: Group, status: str) -> None:
        """Finish every run; another process may go on with those that have not ended."""
        while self._open:
            self._open.popitem()[1].finish()
        self._told = None
        self._states.clear()
        _silent.discard(threading.get_ident())

    def _told_of(self, group: Group) -> Told:
        _silent.add(threading.get_ident())
        if self._told is None:
            self._group_of_runs, self._told = group, Told(group.root / "trackio.jsonl")
        return self._told

    def _of(self, run: TrackedRun) -> Any:
        return self._open[run.number] if run.number in self._open else self._begin(run)

    def _begin(self, run: TrackedRun) -> Any:
        assert self._group_of_runs is not None and self._told is not None, "begin comes first"
        name = f"{run.name} {self._group_of_runs.directory}"
        known = self._told.has(run.number)
        self._open[run.number] = self._init(self._group_of_runs, name, self._configs[run.number], known)
        return self._open[run.number]

    def _of_all(self, group: Group) -> Any:
        if None not in self._open:
            self._open[None] = self._init(group, group.directory, {}, True)
        return self._open[None]

    def _init(self, group: Group, name: str, config: dict[str, Any], is_known: bool) -> Any:
        """Begin in a context of its own: Trackio finishes the run that is current when another begins.

        Args:
            group: the experiment.
            name: unique in the project, because Trackio finds runs by it.
            config: all of it each time; Trackio replaces it.
            is_known: whether to go on with a run of that name.
        """
        return contextvars.Context().run(
            self._trackio.init,
            project=self._project or group.name,
            name=name,
            group=group.directory,
            space_id=self._space_id,
            server_url=self._server_url,
            config=dict(config),
            resume="allow" if is_known else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


def _check_place(space_id: str | None, server_url: str | None) -> None:
    from trackio import utils
    from trackio.remote_client import RemoteClient

    space_id, server_url = utils.resolve_space_id_and_server_url(space_id, server_url)
    try:
        if space_id is not None:
            import huggingface_hub

            huggingface_hub.whoami()
        elif server_url is not None:
            token = _write_token(server_url)
            RemoteClient(_shown(server_url), hf_token=None, write_token=token)
    except ConfigError:
        raise
    except Exception as error:  # httpx's, huggingface_hub's, Trackio's own
        text = " ".join(without_secrets(str(error)).split())[:300]
        if space_id is not None:
            raise ConfigError(
                f"Trackio's Space {space_id} wants a login, and Hugging Face says: {text}. Say `hf auth login`, or set "
                f"HF_TOKEN; another place is loggers.trackio.server_url, and {_LOCAL}"
            ) from error
        raise ConfigError(
            f"Trackio at {_shown(server_url)} does not answer: {text}. Start it (trackio show), or name another: "
            f"loggers.trackio.server_url, loggers.trackio.space_id; {_LOCAL}"
        ) from error


def _write_token(server_url: str) -> str:
    from trackio import utils

    token: str | None = utils.parse_trackio_server_url(server_url)[1] or os.environ.get("TRACKIO_WRITE_TOKEN")
    if not token:
        raise ConfigError(
            f"Trackio at {_shown(server_url)} wants a token to write. Set TRACKIO_WRITE_TOKEN to the write_token that "
            f"`trackio show` prints; {_LOCAL}"
        )
    return token


def _shown(url: str | None) -> str:
    """Return an address without who asks and the token that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", url or "").partition("?")[0]


def _level(trackio: Any, state: str) -> Any:
    return trackio.AlertLevel.ERROR if state == "failed" else trackio.AlertLevel.INFO


def _quieten(trackio: Any) -> None:
    """Let Trackio print nothing in threads that are trackers'; others hear what it says."""

    def say(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() not in _silent:
            builtins.print(*args, **kwargs)

    for module in (trackio, trackio.run, trackio.utils):
        module.__dict__["print"] = say
