"""What of a configuration is not shown: secrets, and whatever has come from the environment."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import rfflow
from rfflow import confidential
from rfflow.checkpointing import experiment_file
from rfflow.checkpointing.experiment_file import RunRecord
from rfflow.confidential import Shown, digest, is_digest_of, is_secret, redacted, shown_config
from rfflow.control.asking import drop
from rfflow.engine import restoring
from rfflow.errors import ConfigError
from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Callback, Experiment
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run, RunState
from tests.support.toy import toy_spec

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_clear")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("RATE", "0.5")
    monkeypatch.setenv("WHICH", "big")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setattr(confidential, "_seen", set())


def shown(**config: Any) -> Shown:
    cfg = OmegaConf.create(config)
    return shown_config(cfg, OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN}"),
        ("${secrets.hf}", "${oc.env:HF_TOKEN}"),
        ("${secrets.again}", "${oc.env:HF_TOKEN}"),
        ("Bearer ${secrets.hf}!", "Bearer ${oc.env:HF_TOKEN}!"),
        ("${oc.select:secrets.hf}", "${oc.env:HF_TOKEN}"),
        ("${oc.env:${secrets.name}}", "${oc.env:HF_TOKEN}"),
        ("${oc.decode:${oc.env:DATA}}", "${oc.decode:${oc.env:DATA}}"),
        ("${rate}", 0.5),  # a number is no token
        ("${oc.env:UNSET,plain}", "plain"),
        ("${secrets.name}", "HF_TOKEN"),
        ("${sizes.${oc.env:WHICH}}", "${sizes.${oc.env:WHICH}}"),
        ("plain", "plain"),
        (["a", {"b": "${secrets.hf}"}], ["a", {"b": "${oc.env:HF_TOKEN}"}]),
    ],
)
def test_what_comes_from_the_environment_is_shown_as_where_it_comes_from(value: Any, text: Any) -> None:
    found = shown(
        secrets={"hf": "${oc.env:HF_TOKEN}", "again": "${.hf}", "name": "HF_TOKEN"},
        rate="${oc.decode:${oc.env:RATE}}",
        sizes={"big": "large.jsonl"},
        x=value,
    )
    assert found.config["x"] == text
    assert "hf_clear" not in str(found)
    assert OmegaConf.to_container(OmegaConf.create({"x": "${oc.env:HF_TOKEN}"}), resolve=True) == {"x": "hf_clear"}


def test_a_whole_section_that_is_referred_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(secrets={"hf": "${oc.env:HF_TOKEN}"}, copy="${secrets}")
    assert found.config == {"secrets": {"hf": "${oc.env:HF_TOKEN}"}, "copy": {"hf": "${oc.env:HF_TOKEN}"}}


def test_a_resolver_of_ones_own_that_changes_the_value_hides_nothing_less() -> None:
    OmegaConf.register_new_resolver("backwards", lambda text: text[::-1], replace=True)
    found = shown(x="${backwards:${oc.env:HF_TOKEN}}")
    assert found.config == {"x": "${backwards:${oc.env:HF_TOKEN}}"}


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "api_key", "wandb_api_key", "apikey", "password", "secret", "client_secret"],
)
def test_secrets_are_known_by_their_keys(key: str) -> None:
    found = shown(a={key: "hf_clear", "b": [{key: ["hf_clear"]}]}, json=f'{{"{key}": "hf_clear", "r": 1}}')
    assert found.config["a"] == {key: "(hidden)", "b": [{key: ["(hidden)"]}]}
    assert "hf_clear" not in str(found) and '"r": 1' in found.config["json"]
    assert is_secret(f"a.{key}") and is_secret(f"a.b.0.{key}.0")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token", "</s>"),
        ("pad_token", "<pad>"),
        ("max_new_tokens", 3),
        ("token", True),
        ("monkey", "a"),
        ("key", "a"),
        ("tokenizer", "maker/base"),
    ],
)
def test_other_keys_are_shown(key: str, value: Any) -> None:
    assert shown(**{key: value}).config == {key: value}
    assert redacted(f"trainer.{key}={value}") == f"trainer.{key}={value}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.token=hf_x lr=1", "model.token=(hidden) lr=1"),
        ("+trainer.args.hub_token='hf x' lr=1", "+trainer.args.hub_token=(hidden) lr=1"),
        ("model={name: a, token: hf_x, dtype: b}", "model={name: a, token: (hidden), dtype: b}"),
        ("""x='{"api_key": "hf_x", "r": 1}'""", """x='{"api_key": (hidden), "r": 1}'"""),
        ("model.token=${oc.env:HF_TOKEN}", "model.token=${oc.env:HF_TOKEN}"),
        ("model.token=null", "model.token=null"),
        ("The environment variable HF_TOKEN is not set", "The environment variable HF_TOKEN is not set"),
    ],
)
def test_secrets_in_texts(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_a_secret_that_was_read_is_taken_out_of_any_text() -> None:
    shown(model={"token": "${oc.env:HF_TOKEN}"})
    assert redacted("401: hf_clear is not allowed") == "401: (hidden) is not allowed"
    assert str(ConfigError("unexpected token: hf_clear")) == "unexpected token: (hidden)"
    assert str(ConfigError("unexpected token: x")) == "unexpected token: x"


def test_a_secret_that_was_typed_is_hidden_wherever_it_is_referred_to() -> None:
    """And nowhere else: a word may be a password, too."""
    found = shown(model={"token": "hf_typed"}, name="me-${model.token}", copy="${model}", other="hf_typed")
    assert found.config["name"] == "me-(hidden)" and found.config["copy"] == {"token": "(hidden)"}
    assert found.config["other"] == "hf_typed" and not found.hidden


def test_values_that_are_hidden_and_no_secrets_can_be_compared() -> None:
    found = shown(path="${oc.env:DATA}/x.jsonl", model={"token": "${oc.env:HF_TOKEN}"}, auth="${oc.env:HF_TOKEN}")
    assert found.config["path"] == "${oc.env:DATA}/x.jsonl"
    assert found.hidden == {"path": "/data/x.jsonl"}
    made = digest("/data/x.jsonl")
    assert "/data" not in made and made != digest("/data/x.jsonl")
    assert is_digest_of(made, "/data/x.jsonl") and not is_digest_of(made, "/data/y.jsonl")


def test_a_configuration_without_references_to_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidential, "_Environment", lambda *_: pytest.fail("it was looked at"))
    cfg = OmegaConf.create({"a": {"b": "${c}"}, "c": [1, None]})
    assert shown_config(cfg, {"a": {"b": [1, None]}, "c": [1, None]}).config == {"a": {"b": [1, None]}, "c": [1, None]}


# --- an experiment that has been given some ---------------------------------------------------------------------------


def test_no_file_of_an_experiment_has_the_token(
    tmp_path: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the environment, through another key, to where a library wants it; and one that was typed.

    Nor has an op that names a module brought it in.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("open('ran', 'w').close()\nfrom transformers import TrainerCallback as It\n")
    seen: list[Any] = []
    monkeypatch.setattr("rfflow.worker.models.loading.create_model_from_path", _noting(seen))
    words = ["recipe=sft", "dataset=local", f"dataset.path={tiny_data}", "model=hub", f"model.name={tiny_model}"]
    words += ["trainer.args.max_steps=2", "chunks=2", "dataset.max_samples=24", "engine.accelerator=cpu"]
    words += ["+secrets.hf=${oc.env:HF_TOKEN}", "model.token=${secrets.hf}", "trainer.args.hub_token=hf_typed"]
    words += ["+callbacks.person._target_=tests.test_confidential.Person", "control.idle_timeout=0"]
    table = rfflow.sweep(*words)
    assert list(table["state"]) == ["completed"] * 2 and seen == ["hf_clear"]
    root = Path(table.attrs["dir"])
    (refusal,) = (root / "control/rejected").glob("*.error")
    assert "trainer.callbacks.0 would be 'planted.It'" in refusal.read_text() and not (tmp_path / "ran").exists()
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {"experiment.json", "ops.jsonl", "control/status.yaml", "runs.csv"} <= set(files)
    assert any(name.startswith("tb/0 ") for name in files) and "runs/1/checkpoints/final/training_args.bin" in files
    assert [name for name, content in files.items() if b"hf_clear" in content] == []
    hydras = ("multirun.yaml", ".hydra/overrides.yaml", ".hydra/config.yaml", ".hydra/hydra.yaml", "experiment.json")
    assert [name for name, content in files.items() if b"hf_typed" in content and not name.endswith(hydras)] == []
    assert stat.S_IMODE((root / "experiment.json").stat().st_mode) == 0o600
    config = json.loads(experiment_file.read(root / "experiment.json").runs[0].config)  # type: ignore[union-attr]
    assert config["model"]["token"] == "${oc.env:HF_TOKEN}"
    assert config["trainer"]["args"]["hub_token"] == "(hidden)"


class Person(Callback):
    """Clones the first run as soon as it can be, with what a label would show."""

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        if (run.number, result.chunk) == (0, 0):
            for own in (["lr=1", "model.token=${secrets.hf}"], ["trainer.callbacks=[planted.It]"]):
                drop(experiment.paths.control, {"op": "clone", "run": 0, "overrides": own})


def _noting(seen: list[Any]) -> Any:
    from trl.trainer.utils import create_model_from_path

    def create(name: str, **kwargs: Any) -> Any:
        seen.append(kwargs["token"])
        return create_model_from_path(name, **kwargs)

    return create


def run_with(**config: Any) -> Run:
    cfg = OmegaConf.create(config)
    found = shown_config(cfg, OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    spec = replace(toy_spec(), config=found.config, hidden=found.hidden)
    return Run(0, spec, (), RunPaths(Path("unused")))


def test_a_token_may_be_renewed_and_a_path_may_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": {"token": "${oc.env:HF_TOKEN}"}, "auth": "${oc.env:HF_TOKEN}", "path": "${oc.env:DATA}/x"}
    run = run_with(**config)
    record = RunRecord(
        0,
        RunState.RUNNING,
        (),
        None,
        "runs/0",
        config=experiment_file.config_text(run.spec.config),
        digests={key: digest(value) for key, value in run.spec.hidden.items()},
    )
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    restoring.check_config(record, run_with(**config))
    monkeypatch.setenv("DATA", "/elsewhere")
    with pytest.raises(ConfigError, match=r"path='\$\{oc.env:DATA\}/x' and would .* stands for something else"):
        restoring.check_config(record, run_with(**config))


def test_an_experiment_of_before_that_has_the_value_in_clear_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunRecord(0, RunState.RUNNING, (), None, "runs/0", config=json.dumps({"path": "/data/x", "token": "old"}))
    config = {"path": "${oc.env:DATA}/x", "token": "${oc.env:HF_TOKEN}"}
    restoring.check_config(record, run_with(**config))
    monkeypatch.setenv("DATA", "/elsewhere")
    with pytest.raises(ConfigError, match="path="):
        restoring.check_config(record, run_with(**config))


def test_who_may_read_the_state_is_for_its_owner_to_say(tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    state = experiment_file.SavedExperiment("sft", 0.0)
    experiment_file.write(path, state, {}, is_first=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o664)
    experiment_file.write(path, state, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
