"""A slot for each device of a Ray cluster: one actor a device, with the worker that a process of this machine has.

Ray finds the device and starts the actor; what is told goes over connections of our own, which end with either side:
an actor outlives nobody, and that one is gone is known at once.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import AuthenticationError, connection
from pathlib import Path
from typing import Any

from rfflow.config.spec import ExperimentSpec
from rfflow.slots.cluster import Cluster
from rfflow.slots.serve import Seat, serve
from rfflow.slots.wired import TOO_EARLY, Link, WiredSlots

log = logging.getLogger(__name__)

_START = 180.0
"""Seconds that Ray is given to start an actor."""
_LOOK = 5.0
"""Those of silence after which it is asked whether an actor is there still."""


class RaySlots(WiredSlots):
    """Workers in actors of the cluster that this process has joined.

    Args:
        spec: what all runs have in common.
        cluster: where they stand.
        make_worker: makes another worker than the one that trains; it must be importable.
    """

    def __init__(self, spec: ExperimentSpec, cluster: Cluster, make_worker: Callable[..., Any] | None = None):
        super().__init__(cluster.count)
        self._spec = spec
        self._cluster = cluster
        self._make_worker = make_worker
        self._door: _Door | None = None

    def _start(self, slot: int) -> Link:
        import ray

        if self._door is None:
            self._door = _Door(ray.util.get_node_ip_address())
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        listening, nudges = context.Pipe(duplex=False)
        seat = Seat(slot, self._spec, self._make_worker, multiprocessing.get_start_method())
        way = _Way(
            self._door.address,
            self._door.key,
            secrets.token_hex(8),
            self._cluster.environment,
            _own_path(),
            os.getcwd(),
        )
        actor = _actor_class().options(**self._cluster.demands).remote()
        body = _Actor(actor, actor.serve.remote(pickle.dumps(seat), way))
        threading.Thread(target=_carry, args=(self._door, way.name, there, listening, body), daemon=True).start()
        return Link(body, here, nudges)

    def close(self) -> None:
        """End every actor in order, and those that do not end, at once."""
        super().close()
        if self._door is not None:
            self._door.close()
            self._door = None


@dataclass(frozen=True)
class _Way:
    """How an actor finds back to the process that has started it."""

    address: tuple[str, int]
    key: bytes
    name: str
    """What it calls itself when it comes."""
    environment: Mapping[str, str]
    path: tuple[str, ...]
    """Where this process finds modules."""
    here: str
    """The directory in which it was started."""


class _Actor:
    """What a worker runs in."""

    def __init__(self, actor: Any, served: Any):
        self._actor = actor
        self._served = served
        self.trouble: str | None = None
        """Why it has never come."""
        self.ended = None  # Ray is asked, see _carry

    def kill(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # Ray may be gone before us
            ray.kill(self._actor, no_restart=True)

    def join(self, timeout: float) -> bool:
        import ray

        return bool(ray.wait([self._served], timeout=timeout)[0])

    def how_ended(self, *, has_begun: bool) -> str:
        if self.trouble is not None:
            return self.trouble
        return f"{self._how_ended()}{'' if has_begun else TOO_EARLY}"

    def why_not_begun(self) -> str:
        """Say why Ray has given up on an actor that has never come."""
        import ray
        from ray.exceptions import RayError

        try:
            ray.get(self._served, timeout=1)
        except RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return next(
                (line for line in lines if "is dead because" in line), lines[-1] if lines else "no reason given"
            )
        return "it has ended"

    def _how_ended(self) -> str:
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

        try:
            ray.get(self._served, timeout=1)
        except ActorDiedError as error:
            where = next((line.strip() for line in str(error).splitlines() if line.strip().startswith("ip:")), "")
            return f"its actor died{f' ({where})' if where else ''}"
        except ActorUnavailableError:  # Ray has yet to find out why
            return "its actor is gone, or the machine on which it was"
        except RayError as error:
            return f"its actor failed: {str(error).strip().splitlines()[-1]}"
        return "its actor ended"

    def would_end_again(self) -> bool:
        return self.trouble is not None

    def forget(self) -> None:
        """Ray holds what there is."""


class _Door:
    """Where actors come in."""

    def __init__(self, host: str):
        self.key = secrets.token_bytes(32)
        self._listener = connection.Listener((host, 0), authkey=self.key, backlog=64)
        self._come: dict[str, connection.Connection] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.address
        return str(host), int(port)

    def wait_for(self, name: str, timeout: float) -> connection.Connection | None:
        """Return the connection of that name once it is there."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._come or self._is_closed, timeout)
            return self._come.pop(name, None)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # it wakes whoever waits in accept()
            connection.Client(self.address, authkey=self.key).close()
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                come = self._listener.accept()
                _keep_alive(come)
                name = come.recv_bytes().decode()
            except (OSError, EOFError, AuthenticationError):
                continue  # no actor of ours
            with self._changed:
                self._come[name] = come
                self._changed.notify_all()


def _carry(door: _Door, name: str, there: Any, listening: Any, body: _Actor) -> None:
    """Carry what is told to and fro, until one side has ended."""
    wire = _wait_for(door, f"{name} wire", body)
    nudges = None if wire is None else _wait_for(door, f"{name} nudges", body)
    if wire is None or nudges is None:
        body.kill()
    else:
        to = {there: wire, wire: there, listening: nudges}
        with contextlib.suppress(EOFError, OSError):
            while True:
                come = connection.wait(list(to), _LOOK)
                for ready in come:
                    to[ready].send_bytes(ready.recv_bytes())  # type: ignore[union-attr]
                if not come and body.join(0):  # what it has forked may hold the connections open
                    break
    for end in (there, listening, wire, nudges):
        if end is not None:
            end.close()


def _wait_for(door: _Door, name: str, body: _Actor) -> connection.Connection | None:
    """Wait for an actor to come, as long as it may; note why it has not."""
    until = time.monotonic() + _START
    while (come := door.wait_for(name, min(_LOOK, _START))) is None:
        if body.join(0):
            body.trouble = f"no actor has come: Ray says: {body.why_not_begun()}"
            return None
        if time.monotonic() > until:
            body.trouble = (
                f"no actor has come within {_START:.0f} s: Ray has no room for it, or it cannot reach this machine "
                "(ray status says what the cluster has)"
            )
            return None
    return come


def _actor_class() -> Any:
    import ray

    @ray.remote(max_restarts=0, max_task_retries=0)
    class Worker:
        """One call that lasts as long as the experiment: it has the actor's main thread, which greenlets need."""

        def serve(self, seat: bytes, way: _Way) -> None:
            serve_there(seat, way)

    return Worker


def serve_there(seat: bytes, way: _Way) -> None:
    """Do what a worker's process does, in an actor."""
    os.environ.update(way.environment)
    sys.path += [place for place in way.path if place not in sys.path]
    os.chdir(way.here)
    with contextlib.suppress(OSError, AttributeError):  # Ray lets its workers give way to everybody
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    ends = []
    for what in ("wire", "nudges"):
        end = connection.Client(way.address, authkey=way.key)
        _keep_alive(end)
        end.send_bytes(f"{way.name} {what}".encode())
        ends.append(end)
    serve(pickle.loads(seat), *ends)


def _keep_alive(end: Any) -> None:
    """Notice within half a minute that the other machine is gone."""
    with socket.socket(fileno=os.dup(end.fileno())) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                plug.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _own_path() -> tuple[str, ...]:
    return tuple(str(Path(place).absolute()) for place in sys.path)
