"""The plugin: the page's files and what it asks for, all of it read-only."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from rfflow.dashboard import reader
from rfflow.dashboard.guard import why_not_read

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_LOOK_AGAIN = 3.0
"""Seconds until experiments are looked for once more."""


class RfflowPlugin(base_plugin.TBPlugin):
    """The tab of a TensorBoard whose logdir lies in, or above, experiments."""

    plugin_name = "rfflow"

    def __init__(self, context: Any):
        flags = context.flags
        self._logdir = str(context.logdir or "")
        self._is_public = bool(getattr(flags, "bind_all", False) or getattr(flags, "host", None))
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        """Readers remember how far they have read, and requests come on several threads."""
        self._found: dict[str, reader.Experiment] = {}
        self._looked: float | None = None

    def is_active(self) -> bool:
        """Whether there is an experiment."""
        return bool(self._experiments())

    def frontend_metadata(self) -> Any:
        """Say what TensorBoard loads for the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="rfflow", disable_reload=True)

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the routes."""
        return {
            "/index.js": self._file,
            "/static/*": self._file,
            "/experiments": self._answering(self._listing),
            "/state": self._answering(self._state),
            "/points": self._answering(self._points),
            "/log": self._answering(self._log),
        }

    def _experiments(self) -> dict[str, reader.Experiment]:
        with self._lock:
            now = time.monotonic()
            if self._looked is None or now - self._looked > _LOOK_AGAIN:
                there = reader.find(self._logdir) if self._logdir else {}
                self._found = {name: self._found.get(name) or reader.Experiment(path) for name, path in there.items()}
                self._looked = now
            return self._found

    @wrappers.Request.application  # type: ignore[arg-type]
    def _file(self, request: Any) -> Any:
        name = request.path.partition("/plugin/rfflow/")[2].removeprefix("static/")
        path = (STATIC / name).resolve()
        if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
            return http_util.Respond(request, "Not found", "text/plain", code=404)
        return http_util.Respond(request, path.read_bytes(), _TYPES.get(path.suffix, "text/plain"))

    def _answering(self, function: Callable[[Any], Any]) -> Any:
        @wrappers.Request.application
        def app(request: Any) -> Any:
            if request.method not in ("GET", "HEAD"):
                return http_util.Respond(request, {"error": "The page only reads: GET."}, "application/json", code=405)
            if reason := why_not_read(request.headers.get("Host", ""), is_public=self._is_public):
                return http_util.Respond(request, {"error": reason}, "application/json", code=403)
            try:
                with self._reading:
                    return function(request)
            except (KeyError, ValueError) as error:
                said = f"There is no {error.args[0]!r}." if isinstance(error, KeyError) else str(error)
                return http_util.Respond(request, {"error": said}, "application/json", code=400)

        return app

    def _experiment(self, request: Any) -> reader.Experiment:
        return self._experiments()[request.args.get("experiment", "")]

    def _listing(self, request: Any) -> Any:
        found = [{"name": name, "alive": each.is_alive} for name, each in self._experiments().items()]
        found.sort(key=lambda each: (each["alive"], each["name"]), reverse=True)
        return http_util.Respond(request, {"experiments": found}, "application/json")

    def _state(self, request: Any) -> Any:
        experiment = self._experiment(request)
        tag = hashlib.sha256(experiment.version().encode()).hexdigest()[:16]
        if request.args.get("tag") == tag:
            return http_util.Respond(request, {"tag": tag, "same": True}, "application/json")
        return http_util.Respond(request, {**experiment.state(), "tag": tag}, "application/json")

    def _points(self, request: Any) -> Any:
        since = int(request.args.get("since", "0"))
        return http_util.Respond(request, self._experiment(request).points(since), "application/json")

    def _log(self, request: Any) -> Any:
        text = self._experiment(request).log_tail(int(request.args.get("run", "")))
        return http_util.Respond(request, {"log": text}, "application/json")
