"""A recipe on a tiny model, and the commands of its page."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rfflow.config.spec import TrainSpec
from rfflow.runs.run import Run
from tests.launch.test_cli import Shell

ROOT = Path(__file__).parents[2]


def train(monkeypatch: pytest.MonkeyPatch, recipe: str, model: Path, *words: str) -> tuple[Path, list[dict[str, str]]]:
    """Train a recipe on a tiny model, in two chunks an epoch; return its directory and its table of runs."""
    from rfflow import __main__ as cli

    small = ["model=hub", f"model.name={model}", "model.dtype=float32", "chunks=2"]
    monkeypatch.setattr(sys, "argv", ["rfflow", f"+recipe={recipe}", "--multirun", *words, *small])
    cli.main()
    (root,) = Path("outputs", recipe).iterdir()
    with open(root / "runs.csv", encoding="utf-8") as file:
        return root, list(csv.DictReader(file))


def page_of(recipe: str) -> str:
    """Return a recipe's page."""
    return (ROOT / "recipes" / recipe / "README.md").read_text(encoding="utf-8")


def gpu_commands(page: str) -> list[str]:
    """Return what stands behind ``python -m rfflow`` where a page trains another model, which wants a GPU."""
    return re.findall(r"(?m)^ {4}python -m rfflow (.* model=.*)$", page)


def composed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> Iterator[Run]:
    """Yield the runs of a command, composed and not trained."""
    rfflow = Shell(capsys, monkeypatch)
    said = rfflow(*shlex.split(command), *words)
    assert rfflow.status == 0, f"{command}\n{said}"
    yield from rfflow.engines[0].runs


def check_names(spec: TrainSpec) -> None:
    """Check that a run's arguments are TRL's and PEFT's, and that its formatting function is there."""
    from rfflow.config.targets import import_object, resolve_function
    from rfflow.worker.training.arguments import check_values, listed

    args_class = import_object(spec.trainer.args_target)
    check_values(args_class, listed(args_class, spec.trainer.args), "trainer.args")
    if spec.peft:
        values = {key: value for key, value in spec.peft.items() if key != "_target_"}
        check_values(import_object(spec.peft["_target_"]), values, "peft")
    if spec.dataset.formatting_func:
        resolve_function(spec.dataset.formatting_func)
