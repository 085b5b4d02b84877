"""What is read of a run that is over: which model, found again from wherever one is, and by whose word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.starting import Command
from rfflow.errors import ConfigError
from rfflow.results.finished import finished
from rfflow.results.opened import open_experiment
from rfflow.runs.finished import FinishedRun
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import RunState
from tests.results.test_listing import leave, record
from tests.support.finished import QUANTISED


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def left(tmp_path: Path, trainer: str = "trl.SFTTrainer", **model: Any) -> FinishedRun:
    """Leave a run with that section `model` and read it again; it was started in the folder `started`."""
    config = {"model": model, "trainer": {"_target_": trainer, "args": {"seed": 7}}} if model else {}
    root = leave(tmp_path / "out", replace(record(0, RunState.COMPLETED, 1.0), config=json.dumps(config)))
    adapter = {"base_model_name_or_path": "noted/base", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (root / "runs/0/checkpoints/final/adapter_config.json").write_text(json.dumps(adapter))
    state = ExperimentPaths(root).state
    saved = experiment_file.read(state)
    assert saved is not None
    command = Command(True, str(root), str(tmp_path / "started"))
    experiment_file.write(state, replace(saved, command=command), {})
    opened = open_experiment(root)
    return finished(opened, opened.experiment.runs[0])


def test_a_model_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths were relative to where the experiment was started; the environment is asked again."""
    (tmp_path / "started/models/mine").mkdir(parents=True)
    monkeypatch.setenv("MODELS", "models")
    run = left(tmp_path, name="${oc.env:MODELS}/mine", tokenizer="Qwen/x", token="(hidden)", dtype="auto")
    assert run.model is not None and run.model.name == str(tmp_path / "started/models/mine")
    assert run.model.tokenizer == "Qwen/x" and dict(run.model.kwargs) == {"dtype": "auto"}
    assert run.generates and run.method == "LORA"


def test_a_variable_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its model is '\$\{oc.env:MODELS_OF_NOBODY\}'.*MODELS_OF_NOBODY"):
        left(tmp_path, name="${oc.env:MODELS_OF_NOBODY}")


def test_a_reward_model_has_the_head_that_it_was_trained_with(tmp_path: Path) -> None:
    run = left(tmp_path, "trl.RewardTrainer", name="some/model")
    assert run.model is not None and not run.generates
    assert run.model.kwargs["head_seed"] == 7 and run.model.kwargs["num_labels"] == 1


def test_an_app_leaves_no_configuration_and_the_adapter_names_its_base(tmp_path: Path) -> None:
    run = left(tmp_path)
    assert run.model is not None and run.model.name == "noted/base"


def test_nobody_else_says_which_code_loads_a_model(tmp_path: Path) -> None:
    """transformers' own settings are none."""
    left(tmp_path, name="some/model", quantization_config=QUANTISED)
    state = tmp_path / "out/experiment.json"
    state.chmod(0o666)
    opened = open_experiment(tmp_path / "out")
    assert finished(opened, opened.experiment.runs[0]).model is not None
    with pytest.raises(ConfigError, match=r"would run my_code.Quant as you, and others may write to it"):
        _again(tmp_path, quantization_config={"_target_": "my_code.Quant"})
    with pytest.raises(ConfigError, match=r"would run model.trust_remote_code as you"):
        _again(tmp_path, trust_remote_code=True)
    state.chmod(0o600)
    assert _again(tmp_path, trust_remote_code=True).model is not None


def _again(tmp_path: Path, **model: Any) -> FinishedRun:
    """Read the run as if its file, whose mode stays, had another section `model`."""
    opened = open_experiment(tmp_path / "out")
    config = {"model": {"name": "some/model", **model}, "trainer": {"_target_": "trl.SFTTrainer"}}
    runs = tuple(replace(run, config=json.dumps(config)) for run in opened.saved.runs)
    opened = replace(opened, saved=replace(opened.saved, runs=runs))
    return finished(opened, opened.experiment.runs[0])
