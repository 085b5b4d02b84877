"""What is global belongs to the run: nobody outside sees what it changes, and it finds it again."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.hydra_config import HydraConfig

from rfflow.training.context import GlobalState, RunContext, unmoved_random_state

CPU = torch.device("cpu")


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(CPU, tmp_path / "run.log")


def other(tmp_path: Path) -> RunContext:
    """Return the context of another run."""
    return RunContext(CPU, tmp_path / "other.log")


# Each is how a run changes something global, and how anybody sees it.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "grad mode": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "matmul precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
    ),
    "cudnn benchmark": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "tf32": (
        lambda: setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
        lambda: torch.backends.cudnn.allow_tf32,
    ),
    "autocast": (
        lambda: (torch.set_autocast_enabled("cpu", True), torch.set_autocast_dtype("cpu", torch.float16)),
        lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    ),
    "environment": (
        lambda: (os.environ.__setitem__("RFFLOW_TEST", "mine"), os.environ.pop("PATH", None)),
        lambda: (os.environ.get("RFFLOW_TEST"), os.environ.get("PATH")),
    ),
    "HydraConfig": (
        lambda: setattr(HydraConfig.instance(), "cfg", "the run's"),
        lambda: HydraConfig.instance().cfg,
    ),
    "accelerate": (
        lambda: [s._shared_state.update(mine=s.__name__) for s in (PartialState, AcceleratorState, GradientState)],
        lambda: [s._shared_state.get("mine") for s in (PartialState, AcceleratorState, GradientState)],
    ),
    "log level": (lambda: logging.getLogger().setLevel(logging.CRITICAL), lambda: logging.getLogger().level),
    "log handlers": (
        lambda: logging.getLogger().addHandler(logging.NullHandler()),
        lambda: any(type(handler) is logging.NullHandler for handler in logging.getLogger().handlers),
    ),
    "random": (lambda: random.seed(1), random.getstate),
    "numpy": (lambda: np.random.seed(1), lambda: np.random.get_state()[1].tolist()),
    "torch": (lambda: torch.manual_seed(1), lambda: torch.random.get_rng_state().tolist()),
}


@pytest.mark.parametrize(("change", "look"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("raises", [False, True], ids=["", "raises"])
def test_what_a_run_changes_is_its_own(
    context: RunContext, tmp_path: Path, change: Callable[[], Any], look: Callable[[], Any], raises: bool
) -> None:
    """Not seen outside, nor by another run, even when it raises; found again the next time."""
    before = look()
    try:
        with context.active():
            change()
            changed = look()
            assert changed != before
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert look() == before
    with other(tmp_path).active():
        if look is not CHANGES["accelerate"][1]:
            assert look() == before
        else:
            assert look() == [None] * 3
    with context.active():
        assert look() == changed
    assert look() == before


def test_a_working_directory_is_the_runs_own(context: RunContext, tmp_path: Path) -> None:
    before = os.getcwd()
    (tmp_path / "mine").mkdir()
    with context.active():
        os.chdir(tmp_path / "mine")
    assert os.getcwd() == before
    with context.active():
        assert os.getcwd() == str((tmp_path / "mine").resolve())


def test_a_working_directory_that_is_deleted_breaks_nobody_else(context: RunContext, tmp_path: Path) -> None:
    """Nor what else is global: a run deletes the directory it stands in."""
    before = GlobalState.capture(CPU)
    (tmp_path / "mine").mkdir()
    with context.active():
        torch.set_default_dtype(torch.float64)
        os.chdir(tmp_path / "mine")
        shutil.rmtree(tmp_path / "mine")
    assert os.getcwd() == before.cwd and torch.get_default_dtype() is torch.float32
    with context.active():
        os.chdir(before.cwd or "/")
        assert torch.get_default_dtype() is torch.float64


def test_the_directory_of_everybody_may_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cleans up the directory in which the experiment was started: training goes on."""
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    context = RunContext(CPU, tmp_path / "run.log")
    with context.active():
        shutil.rmtree(tmp_path / "start")
    with context.active():
        torch.manual_seed(5)
    with context.active():
        pass


def test_a_switch_that_fails_half_way_leaves_the_outside_intact(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with context.active():
        torch.set_default_dtype(torch.float64)
        os.environ["RFFLOW_TEST"] = "mine"

    def fail(wanted: object) -> None:
        monkeypatch.undo()
        raise OSError("no")

    monkeypatch.setattr("rfflow.training.context._set_environ", fail)
    with pytest.raises(OSError, match="no"), context.active():
        raise AssertionError("not reached")
    assert torch.get_default_dtype() is torch.float32 and "RFFLOW_TEST" not in os.environ
    with context.active():
        assert torch.get_default_dtype() is torch.float64 and os.environ["RFFLOW_TEST"] == "mine"


def test_random_numbers_go_on_where_they_stopped(context: RunContext, tmp_path: Path) -> None:
    """Drawn in turns with another run, they are the numbers of a run alone."""

    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.nn.functional.dropout(torch.ones(8)).sum()

    with unmoved_random_state(CPU):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        alone = [draw() for _ in range(4)]
    rival, together = other(tmp_path), []
    with context.active():
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
    for _ in range(4):
        with context.active():
            together.append(draw())
        with rival.active():
            draw()
        draw()
    assert together == alone


def test_instances_of_accelerate_keep_their_state(context: RunContext) -> None:
    """They share a dictionary with their class, so its contents move and the dictionary stays."""
    before = dict(GradientState._shared_state)  # of whoever used accelerate in this process before
    with context.active():
        state = GradientState()
        state._set_sync_gradients(False)
    with context.active():
        assert state.sync_gradients is False and GradientState().sync_gradients is False
        assert state.__dict__ is GradientState._shared_state
    assert before == GradientState._shared_state


def test_what_is_printed_goes_to_the_runs_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = RunContext(CPU, tmp_path / "quiet.log")
    loud = RunContext(CPU, tmp_path / "loud.log", capture_output=False)
    for context, word in ((quiet, "quiet"), (loud, "loud")):
        with context.active():
            print(f"{word} print")
            print(f"{word} error", file=sys.stderr)
            logging.getLogger("a.library").warning("%s warning", word)
    print("outside")
    out, err = capsys.readouterr()
    assert "quiet" not in out + err and "loud print" in out and "loud error" in err and "outside" in out
    log = (tmp_path / "quiet.log").read_text()
    assert "quiet print" in log and "quiet error" in log and "WARNING a.library: quiet warning" in log
    assert "loud warning" in (tmp_path / "loud.log").read_text() and "outside" not in log
    quiet.close()
    quiet.close()


def test_libraries_that_log_past_the_root_are_captured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers and torch have handlers of their own; one that is made meanwhile must not outlive the run's log."""
    library, late = logging.getLogger("rfflow_test_library"), logging.getLogger("rfflow_test_late")
    library.propagate = late.propagate = False
    library.addHandler(logging.StreamHandler(sys.stderr))
    context = RunContext(CPU, tmp_path / "run.log")
    with context.active():
        library.warning("inside")
        late.addHandler(logging.StreamHandler(sys.stderr))
        late.warning("late inside")
    context.close()
    library.warning("outside")
    late.warning("late outside")
    assert capsys.readouterr().err == "outside\nlate outside\n"
    assert (tmp_path / "run.log").read_text() == "inside\nlate inside\n"
    library.handlers.clear(), late.handlers.clear()


def test_output_is_back_after_an_exception(context: RunContext) -> None:
    streams, handlers = (sys.stdout, sys.stderr), logging.getLogger().handlers[:]
    with pytest.raises(SystemExit), context.active():
        sys.exit(1)
    assert (sys.stdout, sys.stderr) == streams and logging.getLogger().handlers == handlers


def test_a_job_brings_its_directory_and_its_environment(tmp_path: Path) -> None:
    """As hydra.job.chdir and hydra.job.env_set ask; hydra gives them back when its job function returns."""
    job = SimpleNamespace(chdir=True, env_set={"RFFLOW_TEST": 3})
    hydra: Any = SimpleNamespace(hydra=SimpleNamespace(job=job, runtime=SimpleNamespace(output_dir=str(tmp_path))))
    with RunContext(CPU, tmp_path / "run.log", hydra=hydra).active():
        assert os.getcwd() == str(tmp_path.resolve()) and os.environ["RFFLOW_TEST"] == "3"
        assert HydraConfig.instance().cfg is hydra
    assert os.getcwd() != str(tmp_path) and "RFFLOW_TEST" not in os.environ


@pytest.mark.gpu
def test_the_random_numbers_of_a_gpu_are_the_runs_own(tmp_path: Path) -> None:
    cuda = torch.device("cuda", 0)
    torch.cuda.manual_seed(1)
    context = RunContext(cuda, tmp_path / "run.log")
    with unmoved_random_state(cuda):
        torch.cuda.manual_seed(7)
        alone = [torch.rand(1, device=cuda).item() for _ in range(2)]
    before = torch.cuda.get_rng_state(cuda)
    with context.active():
        torch.cuda.manual_seed(7)
        together = [torch.rand(1, device=cuda).item()]
    assert torch.equal(torch.cuda.get_rng_state(cuda), before)
    with context.active():
        together.append(torch.rand(1, device=cuda).item())
    assert together == alone
