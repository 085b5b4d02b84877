"""A real experiment whose configuration has secrets: where they stand afterwards, and what the tab says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rfflow import confidential
from rfflow.results import commands
from tests.dashboard.test_plugin import Page

GIVEN = {"HF_TOKEN": "hf_envsecretbbbb", "typed": "typed secret-cccc", "nested": "nestedsecret-dddd"}
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


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["here", "in workers"]
)  # slow: two processes import torch
def root(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Train one run, on so many devices, and say what came of it on the terminal."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "my_code.py").write_text(CODE)
    callback = f"{{_target_: my_code.Secretive, api_key: {GIVEN['nested']}, token: '${{oc.env:HF_TOKEN}}'}}"
    words = [
        *("+recipe=sft", "model=hub", f"model.name={tiny_model}", "model.token=${oc.env:HF_TOKEN}"),
        *("dataset=local", f"dataset.path={tiny_data}", "peft=lora_small", "chunks=2", "trainer.args.max_steps=2"),
        *(f"trainer.args.hub_token='{GIVEN['typed']}'", f"trainer.callbacks=[{callback}]", "hydra.run.dir=outputs/one"),
        f"engine.devices={request.param}",
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


@pytest.fixture
def page(root: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """The tab of a TensorBoard that finds the token in its environment, too, and has heard of no secret yet."""
    monkeypatch.setattr(confidential, "_seen", set())
    monkeypatch.setattr("rfflow.dashboard.guard.peer_uid", lambda environ: os.getuid())
    monkeypatch.setenv("HF_TOKEN", GIVEN["HF_TOKEN"])
    return Page(root / "outputs")


@pytest.mark.usefixtures("hydra_restore_singletons")
@pytest.mark.parametrize("word", ["", "model.token=", "trainer.args.hub_token=", "trainer.callbacks.0.api_key="])
def test_the_tab_completes_no_secret(page: Page, word: str) -> None:
    """Neither what was typed nor what the environment has where the tab is."""
    said = page.post("/complete", {"experiment": "one", "run": 0, "word": word})
    assert said.status_code == 200 and not [value for value in GIVEN.values() if value in said.get_data(as_text=True)]
    assert said.json["matches"] or word not in ("", "model.token=")


@pytest.mark.usefixtures("hydra_restore_singletons")
@pytest.mark.parametrize(
    "override",
    [
        "lr=1e-4",
        "trainer.args.run_name=${trainer.args.hub_token}",
        "trainer.args.run_name=${model.token}",
        "trainer.args.hub_token=[new-secret",
        "trainer.args.hub_token=new-secret",
        "trainer.args.learning_rate=${trainer.args.hub_token}",
        "trainer.callbacks=[{_target_: my_code.Secretive, api_key: new-secret}]",
    ],
)
def test_the_tab_checks_without_saying_a_secret(page: Page, override: str) -> None:
    """What a clone would be, and what is wrong with an override, in Hydra's own words, too."""
    said = page.post("/check", {"experiment": "one", "runs": [0], "overrides": [override]}).get_data(as_text=True)
    assert '"ok"' in said and not [value for value in (*GIVEN.values(), "new-secret") if value in said]


def test_the_tab_repeats_no_secret_of_an_answer(page: Page, root: Path) -> None:
    """As one from before may have it."""
    place = root / "outputs/one/control/rejected"
    place.mkdir(parents=True, exist_ok=True)
    (place / "9.yaml").write_text("op: clone")
    (place / "9.yaml.error").write_text("trainer.args.hub_token=an-old-secret is no model")
    said = page.ask("/answer", experiment="one", file="9.yaml").json
    for name in ("9.yaml", "9.yaml.error"):
        (place / name).unlink()
    assert said == {"applied": False, "text": "trainer.args.hub_token=(hidden) is no model"}


def test_a_model_card_has_none(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to the hub, with the command line in it, by a process that has read no configuration."""
    monkeypatch.setattr(confidential, "_seen", set())
    monkeypatch.setenv("HF_TOKEN", GIVEN["HF_TOKEN"])  # what reads the base again wants it
    assert commands.main("export", [str(root / "outputs/one"), "--to", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "hub_token=(hidden)" in card and not [value for value in GIVEN.values() if value in card]
