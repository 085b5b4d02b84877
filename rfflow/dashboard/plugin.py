"""The plugin: the page's files, what it asks for, and the ops that it gives."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from rfflow.confidential import redacted
from rfflow.control.asking import drop, reply_to, wait_for_reply
from rfflow.control.ops import parse
from rfflow.dashboard.composing import Composer
from rfflow.dashboard.finding import find
from rfflow.dashboard.guard import LOOPBACK, Guard, why_not_read
from rfflow.dashboard.reader import Experiment
from rfflow.errors import OpError, RfflowError

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_LOOK_AGAIN = 3.0
"""Seconds until experiments are looked for once more."""
_AT_ONCE = 1.0
"""Seconds that an op waits for its answer; one that takes longer is asked after again."""
_LARGEST = 1_000_000
"""Bytes of a request."""


class RfflowPlugin(base_plugin.TBPlugin):
    """The tab of a TensorBoard whose logdir lies in, or above, experiments."""

    plugin_name = "rfflow"

    def __init__(self, context: Any):
        flags = context.flags
        self._logdir = str(context.logdir or "")
        host = getattr(flags, "host", None) or "localhost"
        self._is_public = bool(getattr(flags, "bind_all", False)) or host not in LOOPBACK
        self._guard = Guard()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        """Readers remember how far they have read, and requests come on several threads."""
        self._found: dict[str, Experiment] = {}
        self._composers: dict[Path, Composer] = {}
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
            "/experiments": self._reads(self._listing),
            "/state": self._reads(self._state),
            "/run": self._reads(self._run),
            "/generations": self._reads(self._generations),
            "/answer": self._reads(self._answer),
            "/op": self._writes(self._op),
            "/check": self._writes(self._check),
            "/complete": self._writes(self._complete),
        }

    def _experiments(self) -> dict[str, Experiment]:
        with self._lock:
            now = time.monotonic()
            if self._looked is None or now - self._looked > _LOOK_AGAIN:
                there = find(self._logdir) if self._logdir else {}
                self._found = {name: self._found.get(name) or Experiment(path) for name, path in there.items()}
                self._looked = now
            return self._found

    # --- what is let in -----------------------------------------------------------------------------------------------

    @wrappers.Request.application  # type: ignore[arg-type]
    def _file(self, request: Any) -> Any:
        name = request.path.partition("/plugin/rfflow/")[2].removeprefix("static/")
        path = (STATIC / name).resolve()
        if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
            return http_util.Respond(request, "Not found", "text/plain", code=404)
        return http_util.Respond(request, path.read_bytes(), _TYPES.get(path.suffix, "text/plain"))

    def _reads(self, function: Callable[[Any], Any]) -> Any:
        """Return a route that changes nothing."""

        @wrappers.Request.application
        def app(request: Any) -> Any:
            if request.method not in ("GET", "HEAD"):
                return _refused(request, "This only reads: GET.", 405)
            if reason := why_not_read(request.headers.get("Host", ""), is_public=self._is_public):
                return _refused(request, reason, 403)
            with self._reading:
                return self._answered(request, function)

        return app

    def _writes(self, function: Callable[[Any, dict[str, Any]], Any]) -> Any:
        """Return a route for those who may give ops."""

        @wrappers.Request.application
        def app(request: Any) -> Any:
            if request.method != "POST":
                return _refused(request, "This is asked for by POST.", 405)
            if reason := self._guard.why_forged(request.environ) or self._guard.why_not_write(request.environ):
                return _refused(request, reason, 403)
            if (request.content_length or 0) > _LARGEST:
                return _refused(request, f"A request is {_LARGEST} bytes long at most.", 413)
            try:
                body = request.get_json(silent=True)
            except RecursionError:
                body = None
            if not isinstance(body, dict):
                return _refused(request, "The request is no JSON object.", 400)
            return self._answered(request, lambda request: function(request, body))

        return app

    def _answered(self, request: Any, function: Callable[[Any], Any]) -> Any:
        try:
            return http_util.Respond(request, _json(function(request)), "application/json")
        except KeyError as error:
            return _refused(request, f"There is no {error.args[0]!r}.", 400)
        except (ValueError, TypeError, OverflowError, RecursionError, OSError, RfflowError) as error:
            return _refused(request, redacted(str(error)), 400)

    # --- what is read -------------------------------------------------------------------------------------------------

    def _experiment(self, request: Any) -> Experiment:
        return self._experiments()[request.args.get("experiment", "")]

    def _listing(self, request: Any) -> dict[str, Any]:
        found = [{"name": name, "alive": each.is_alive} for name, each in self._experiments().items()]
        found.sort(key=lambda each: (each["alive"], each["name"]), reverse=True)
        if reason := self._guard.why_not_write(request.environ):
            return {"experiments": found, "read_only": reason, "key": self._guard.key_path()}
        return {"experiments": found, "read_only": None, "token": self._guard.token}

    def _state(self, request: Any) -> dict[str, Any]:
        experiment = self._experiment(request)
        tag = hashlib.sha256(experiment.version().encode()).hexdigest()[:16]
        names = request.args.get("metrics", "").split(",")
        points = experiment.points(int(request.args["since"]), names) if "since" in request.args else {}
        if request.args.get("tag") == tag:
            return {"tag": tag, "same": True, **points}
        known, _, ended = request.args.get("chunks", "0,0").partition(",")
        state = experiment.state(int(request.args.get("ops", 0)), (int(known), float(ended)))
        return {**state, "tag": tag, **points}

    def _run(self, request: Any) -> dict[str, Any]:
        experiment, number = self._experiment(request), int(request.args.get("run", ""))
        return {"config": experiment.config(number), "log": experiment.log_tail(number)}

    def _generations(self, request: Any) -> dict[str, Any]:
        experiment = self._experiment(request)
        numbers = [int(word) for word in request.args.get("runs", "").split(",")]
        return {"runs": {number: experiment.generations(number) for number in numbers[:8]}}

    def _answer(self, request: Any) -> dict[str, Any]:
        experiment = self._experiment(request)
        is_alive = experiment.answers  # asked first: an experiment that ends answers before
        reply = reply_to(experiment.control, Path(request.args.get("file", "")).name or ".")
        if reply is not None:
            return {"applied": reply.is_applied, "text": redacted(reply.text)}
        return {} if is_alive else {"applied": False, "text": "The experiment ended before it came to this."}

    # --- what is asked of the experiment ------------------------------------------------------------------------------

    def _op(self, request: Any, body: dict[str, Any]) -> dict[str, Any]:
        experiment = self._experiments()[body.get("experiment", "")]
        parse(body.get("op"))
        if reason := experiment.why_no_ops():
            raise OpError(reason)
        file = drop(experiment.control, body["op"], by="tab")
        reply = wait_for_reply(experiment.control, file, _AT_ONCE, sleep=lambda seconds: time.sleep(0.01))
        if reply is None:
            return {"file": file}
        return {"file": file, "applied": reply.is_applied, "text": redacted(reply.text)}

    def _check(self, request: Any, body: dict[str, Any]) -> dict[str, Any]:
        return self._composer(body).check(
            [int(number) for number in body.get("runs", [])],
            [str(text) for text in body.get("overrides", [])],
            warm_start=bool(body.get("warm_start")),
            page=str(body.get("page", "")),
        )

    def _complete(self, request: Any, body: dict[str, Any]) -> dict[str, Any]:
        return self._composer(body).complete(int(body.get("run", "")), str(body.get("word", "")))

    def _composer(self, body: dict[str, Any]) -> Composer:
        experiment = self._experiments()[body.get("experiment", "")]
        with self._lock:
            return self._composers.setdefault(experiment.root, Composer(experiment))


def _json(content: dict[str, Any]) -> Any:
    """Write it as JSON: TensorBoard's own way looks at every value, which takes six times as long."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:  # a number that JSON has not; TensorBoard makes it a word
        return content


def _refused(request: Any, reason: str, code: int) -> Any:
    return http_util.Respond(request, {"error": reason}, "application/json", code=code)
