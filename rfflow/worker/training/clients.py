"""Libraries that track experiments and keep one client a process, each made to keep one a run.

transformers asks wandb and MLflow for the run that is active and begins one only where there is none, so that runs
which overlap in time would all log into the first one's. trackio keeps its in a context variable, which is a
run's own (:attr:`rfflow.worker.training.context.RunContext.variables`), TensorBoard and Neptune theirs in the callback.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, modelcard
from transformers.integrations import MLflowCallback, TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rfflow.config.claims import Claim, claims_of, client, tracker

log = logging.getLogger(__name__)

Clients = Mapping[str, Any]


def read_clients() -> Clients:
    """Return the clients of the libraries that are imported."""
    return {name: read() for name, (read, _, _) in _LIBRARIES.items() if name in sys.modules}


def set_clients(wanted: Clients, seen: Clients) -> None:
    """Put clients in place of those ``seen``.

    Where a library has been imported since, nothing of it was active yet.
    """
    for name in seen:
        _, write, reset = _LIBRARIES[name]
        if name in wanted:
            write(wanted[name])
        else:
            reset()


def claims_of_trainer(trainer: Trainer) -> Iterator[Claim]:
    """Return what a trainer claims that is about to take its first step; called where its globals are in place."""
    yield from claims_of(lambda name: getattr(trainer.args, name, None), Path.cwd())
    callbacks = trainer.callback_handler.callbacks
    for name, kind in INTEGRATION_TO_CALLBACK.items():
        if any(isinstance(callback, kind) for callback in callbacks):
            yield from tracker(name)
            if (active := _active_client(name)) is not None:
                yield client(name, active)
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir:
            place = os.path.realpath(callback.logging_dir)
            yield Claim(
                "logging_dir",
                place,
                f"both write TensorBoard's events to {place}, where their curves would be one. Unset "
                "TENSORBOARD_LOGGING_DIR, and each has a directory of its own.",
                lasts=True,
            )


def _active_client(name: str) -> str | None:
    """Return which of a library's runs is active; the same text for two of ours is one for both."""
    ask = _ACTIVE.get(name)
    with contextlib.suppress(Exception):  # none is active, which libraries say by raising whatever they like
        return ask() if ask is not None else None
    return None


def end_clients(trainer: Trainer) -> None:
    """End what a trainer would otherwise end when it is collected as garbage, in the midst of another run."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, MLflowCallback):
            callback.__del__()
            callback._auto_end_run = False


def for_a_named_run(clients: Clients, before: Clients, environ: Mapping[str, str]) -> Clients | None:
    """Return clients that let ``MLFLOW_RUN_ID`` name the run that is active.

    Args:
        clients: a run's own.
        before: what they were when it began; a run of MLflow's that was active then was nobody's.
        environ: what names the run.

    Returns:
        ``None`` where the run has begun one by itself, or chosen another place or experiment: that is left as it is.
    """
    if "MLFLOW_RUN_ID" not in environ or clients.get("mlflow") in (None, ((), None, None)):
        return clients
    if clients["mlflow"] != before.get("mlflow"):
        return None
    return {**clients, "mlflow": ((), None, None)}


def left_in_mlflow(clients: Clients, before: Clients, environ: Mapping[str, str]) -> list[str]:
    """Return the ids of MLflow's runs that a run has begun and not ended, less the one that was named to it."""
    active, *_ = clients.get("mlflow", ((),))
    others, *_ = before.get("mlflow", ((),))
    known = {environ.get("MLFLOW_RUN_ID"), *(run.info.run_id for run in others)}
    return [run.info.run_id for run in active if run.info.run_id not in known]


def end_in_mlflow(left: Collection[str], status: str) -> None:
    """End what is left; a server that is not there any more costs a warning."""
    fluent, _ = _mlflow()
    active = fluent._active_run_stack.get()
    active[:] = [run for run in active if run.info.run_id in left]
    while active:
        run = active[-1].info.run_id
        try:
            fluent.end_run(status)
        except Exception as error:  # requests', SQLAlchemy's, MLflow's own
            log.warning("MLflow's run %s cannot be ended: %s: %s", run, type(error).__name__, error)


def _read_wandb() -> tuple[Any, ...]:
    wandb = sys.modules["wandb"]
    return tuple(getattr(wandb, name, None) for name in _wandb_names()), *_wandb_runs()


def _set_wandb(value: tuple[Any, ...]) -> None:
    shown, *runs = value
    for name, own in zip(_wandb_names(), shown, strict=True):
        setattr(sys.modules["wandb"], name, own)
    _wandb_runs()[:] = runs


def _reset_wandb() -> None:
    _wandb_module().unset_globals()
    _wandb_runs().clear()


@functools.cache
def _wandb_names() -> tuple[str, ...]:
    """Return what of wandb is the active run's: ``wandb.run``, ``wandb.log``, ..."""
    return tuple(inspect.signature(_wandb_module().set_global).parameters)


def _wandb_module() -> Any:
    return importlib.import_module("wandb.sdk.lib.module")


def _wandb_runs() -> list[Any]:
    """Return the list of the runs that ``wandb.init`` would go on with, itself."""
    setup = getattr(sys.modules.get("wandb.sdk.wandb_setup"), "_singleton", None)
    runs: list[Any] | None = getattr(setup, "_active_runs", None)
    return [] if runs is None else runs


def _read_mlflow() -> tuple[Any, ...]:
    fluent, service = _mlflow()
    return tuple(fluent._active_run_stack.get()), fluent._active_experiment_id, service._tracking_uri


def _set_mlflow(value: tuple[Any, ...]) -> None:
    fluent, service = _mlflow()
    runs, fluent._active_experiment_id, service._tracking_uri = value
    fluent._active_run_stack.get()[:] = runs


def _mlflow() -> tuple[Any, Any]:
    return sys.modules["mlflow.tracking.fluent"], sys.modules["mlflow.tracking._tracking_service.utils"]


def _set_comment(comment: Any) -> None:
    modelcard.AUTOGENERATED_TRAINER_COMMENT = comment


_LIBRARIES: dict[str, tuple[Callable[[], Any], Callable[[Any], None], Callable[[], None]]] = {
    "wandb": (_read_wandb, _set_wandb, _reset_wandb),
    "mlflow": (_read_mlflow, _set_mlflow, lambda: _set_mlflow(((), None, None))),
    # What trackers add to the card of every model that is saved after them; it is always there.
    "transformers": (lambda: modelcard.AUTOGENERATED_TRAINER_COMMENT, _set_comment, lambda: None),
}
"""How what is active is read, put in place, and made as it is when the library has just been imported."""

_ACTIVE: dict[str, Callable[[], str | None]] = {
    "wandb": lambda: sys.modules["wandb"].run.id,
    "mlflow": lambda: sys.modules["mlflow"].active_run().info.run_id,
    "trackio": lambda: str(id(sys.modules["trackio.context_vars"].current_run.get())),
}
