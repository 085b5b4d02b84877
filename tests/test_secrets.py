"""A real experiment whose configuration has secrets: where they stand afterwards, and what the tab says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dashboard.test_plugin import Page

GIVEN = {"HF_TOKEN": "hf_envsecretbbbb", "typed": "typedsecret-cccc", "nested": "nestedsecret-dddd"}
CODE = """
from transformers import TrainerCallback

class Secretive(TrainerCallback):
    def __init__(self, api_key, token):
        self.said = api_key, token

    def on_train_begin(self, *args, **kwargs):
        print("I use", *self.said)
"""
HYDRAS_OWN = {"multirun.yaml", "overrides.yaml", "hydra.yaml", "config.yaml"}
"""Hydra writes down what was typed."""


@pytest.fixture(scope="module")
def root(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one run, and say what came of it on the terminal."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "my_code.py").write_text(CODE)
    callback = f"{{_target_: my_code.Secretive, api_key: {GIVEN['nested']}, token: '${{oc.env:HF_TOKEN}}'}}"
    words = [
        *("+recipe=sft", "model=hub", f"model.name={tiny_model}", "model.token=${oc.env:HF_TOKEN}"),
        *("dataset=local", f"dataset.path={tiny_data}", "peft=lora_small", "chunks=2", "trainer.args.max_steps=2"),
        *(f"trainer.args.hub_token={GIVEN['typed']}", f"trainer.callbacks=[{callback}]", "hydra.run.dir=outputs/one"),
    ]
    if importlib.util.find_spec("mlflow"):
        words.append("loggers=[default,mlflow]")
    environment = {**os.environ, "HF_TOKEN": GIVEN["HF_TOKEN"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "rfflow", *words], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "terminal.txt").write_bytes(done.stdout + done.stderr)
    return folder


def test_no_file_shows_a_secret(root: Path) -> None:
    """Curves, HParams, MLflow, status, logs, the adapter; only what was typed stands where Hydra writes it down."""
    holding = {
        name: {path for path in root.rglob("*") if path.is_file() and value.encode() in path.read_bytes()}
        for name, value in GIVEN.items()
    }
    assert not holding["HF_TOKEN"], "what comes from the environment is written down nowhere"
    for path in holding["typed"] | holding["nested"]:
        assert path.name in HYDRAS_OWN or (path.name == "experiment.json" and path.stat().st_mode & 0o077 == 0), path
    [log] = root.rglob("run.log")
    assert "I use (hidden) (hidden)" in log.read_text()


def test_the_tab_shows_none_in_any_answer(root: Path) -> None:
    """The state, a run with its configuration and log, generations, and the listing."""
    page = Page(root / "outputs")
    [name] = [each["name"] for each in page.ask("/experiments").json["experiments"]]
    answers = [page.ask("/experiments"), page.ask("/state", experiment=name, since=0, metrics="loss")]
    answers += [page.ask("/run", experiment=name, run=0), page.ask("/generations", experiment=name, runs="0")]
    said = " ".join(answer.get_data(as_text=True) for answer in answers)
    assert "hub_token" in said and not [value for value in GIVEN.values() if value in said]
