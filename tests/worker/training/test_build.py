"""What TRL, PEFT or the data refuse is one sentence before any training; functions and objects come by ``_target_``."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, EvalPrediction, TrainerCallback

from rfflow.config.spec import ControlSpec, ExperimentSpec, RunSpec
from rfflow.engine.engine import Engine
from rfflow.errors import ConfigError
from rfflow.runs.paths import ExperimentPaths
from rfflow.runs.run import Run, RunState
from rfflow.worker.training.build import refusals
from tests.support.tiny import run_spec

Spec = Callable[..., RunSpec]


@pytest.fixture
def spec(tiny_model: Path, tiny_data: Path) -> Spec:
    return lambda **kwargs: run_spec(tiny_model, tiny_data, **kwargs)


def train(root: Path, *specs: RunSpec) -> list[Run]:
    """Train the specs in an experiment of their own."""
    experiment = ExperimentSpec(name="test", accelerator="cpu", control=ControlSpec(enabled=False))
    engine = Engine(experiment, ExperimentPaths(root))
    for number, spec in enumerate(specs):
        engine.add(spec, number)
    engine.run()
    engine.close()
    return engine.experiment.runs


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"args": {"warmup_step": 3}}, "trainer.args.warmup_step is not an argument of SFTConfig"),
        ({"args": {"lr_scheduler_type": "cosin"}}, "trainer.args.lr_scheduler_type is 'cosin'. Did you mean 'cosine'"),
        ({"args": {"loss_type": "nlll"}}, "Invalid `loss_type` nlll passed. Supported values are 'nll' and 'dft'"),
        ({"args": {"eval_strategy": "steps"}}, "eval_strategy is 'steps', and there is nothing to evaluate on"),
        ({"args": {"eval_on_start": True}}, "eval_on_start is true, and there is nothing to evaluate on"),
        ({"peft": {"lora_rank": 3}}, "peft.lora_rank is not an argument of LoraConfig"),
        ({"peft": {"inference_mode": True}}, "peft.inference_mode is True: the adapter would be left as it is"),
        ({"peft": {"base_model_name_or_path": "x"}}, "nothing would read it: the model is model.name"),
        ({"peft": {"eva_config": {"rho": 2.0}}}, "peft.eva_config is given, and nothing would read it: that is for"),
        ({"peft": {"rank_pattern": {"v_prj": 2}}}, "no module that the adapter is on. Did you mean 'v_proj'"),
        ({"peft": {"alpha_pattern": {"k_proj": 2}}}, "no module that the adapter is on. Did you mean"),
        ({"peft": {"layers_to_transform": [0, 7]}}, "layers_to_transform has 7, and the adapter met no such layer"),
        ({"peft": {"r": 0}}, "`r` should be a positive integer value"),
        ({"peft": {"target_modules": ["q_prj"]}}, "nothing in the model is called 'q_prj'. Did you mean 'q_proj'"),
        ({"peft": {"target_modules": ["q_proj", "wv"]}}, "Linear layers there: down_proj, gate_proj, k_proj, lm_head"),
        ({"peft": {"target_modules": "q_proj"}}, "Did you mean [q_proj], as a list? Linear layers there: down_proj,"),
        ({"peft": {"target_modules": 3}}, "peft.target_modules is 3 (int). LoraConfig takes: list, str"),
        ({"peft": {"target_modules": "q_proj("}}, "peft.target_modules is 'q_proj(', which is no regular expression"),
        (
            {"args": {"gradient_accumulation_steps": 0}},
            "gradient_accumulation_steps is 0. Allowed: a whole number from",
        ),
        ({"chunks": 25}, "chunks is 25, but an epoch has only 24 optimizer steps. Allowed: 1 to 24"),
        ({"trainer": "trl.SFTTrainr"}, "trl has no 'SFTTrainr'. Did you mean 'SFTTrainer'"),
        ({"args_target": "pathlib.Path"}, "is not a subclass of transformers.training_args.TrainingArguments"),
    ],
)
def test_what_cannot_be_built_is_said_before_any_training(
    spec: Spec, tmp_path: Path, variant: dict[str, Any], said: str
) -> None:
    """Naming the run; the good run beside it has not begun either."""
    with pytest.raises(ConfigError) as error:
        train(tmp_path, spec(), spec(**variant))
    assert str(error.value).startswith("Run 1 ((defaults)): ") and said in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kwargs": {"learning_rate": 1e-3}}, "takes no 'learning_rate'. SFTConfig does: trainer.args.learning_rate."),
        (
            {"kwargs": {"data_collator": {"_target_": "collections.Counter"}}},
            "which makes nothing that could be called",
        ),
        ({"callbacks": ({"_target_": "collections.Counter"},)}, "collections.Counter is not a transformers.Trainer"),
        ({"callbacks": ({"_target_": "collections.Count"},)}, "has no 'Count'. Did you mean 'Counter'"),
    ],
)
def test_what_a_trainer_could_not_use_is_said_before_any_training(
    spec: Spec, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    run = spec()
    with pytest.raises(ConfigError) as error:
        train(tmp_path, replace(run, trainer=replace(run.trainer, **given)))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("max_steps", "where nothing reads it. SFTConfig's arguments are set by trainer.args.max_steps."),
        ("lora_alpha", "where nothing reads it. LoraConfig's arguments are set by peft.lora_alpha."),
    ],
)
def test_an_argument_at_the_root_of_the_configuration_is_not_passed_over(
    spec: Spec, tmp_path: Path, key: str, said: str
) -> None:
    """``+max_steps=10`` is what Hydra itself proposes for ``max_steps=10``."""
    with pytest.raises(ConfigError) as error:
        train(tmp_path, replace(spec(), unread=("why", key)))
    assert said in str(error.value)


def test_a_library_that_is_not_installed_is_said_as_what_is_missing() -> None:
    """As for ``optim=adamw_8bit`` or ``use_liger_kernel=true``; a bug of the trainer's own keeps its trace."""
    said = r"^The trainer cannot begin: install it$"
    with pytest.raises(ConfigError, match=said), refusals("The trainer cannot begin", ValueError):
        raise ImportError("install it")
    with pytest.raises(AttributeError), refusals("The trainer cannot begin", ValueError):
        raise AttributeError("a bug")


class FakeHub:
    """Takes note of what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, set[str]]] = []

    def create_repo(self, name: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str, **_: Any) -> Any:
        folder = Path(folder_path)
        there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        self.sent.append((repo_id, commit_message, there))
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent


def test_what_is_pushed_to_the_hub_is_the_model_and_nothing_of_rfflows_own(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    args = {"max_steps": 4, "push_to_hub": True, "save_strategy": "steps", "save_steps": 2}
    runs = train(tmp_path, *(spec(args={**args, "hub_model_id": f"me/{name}"}) for name in ("one", "two")))
    assert [(run.state, run.error) for run in runs] == [(RunState.COMPLETED, None)] * 2
    assert {repo for repo, _, _ in hub.sent} == {"me/one", "me/two"}
    for _, message, files in hub.sent:
        own = {file for file in files if not file.startswith("checkpoint-")}
        assert "adapter_model.safetensors" in own and not any("/" in file for file in own), message


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """A user's metric."""
    return {"my_accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class Noted(TrainerCallback):
    """A user's callback that is given an argument."""

    told: list[str] = []

    def __init__(self, word: str):
        self.word = word

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        self.told.append(self.word)


def test_callbacks_collators_and_metrics_come_by_target(spec: Spec, tmp_path: Path) -> None:
    """The collator gets the run's own tokenizer; the metric function is handed over, not called."""
    run = spec(eval_size=8, args={"max_steps": 4})
    kwargs = {
        "compute_metrics": "tests.worker.training.test_build.accuracy",
        "data_collator": {"_target_": "transformers.DataCollatorForSeq2Seq", "pad_to_multiple_of": 4},
    }
    callbacks = ({"_target_": "tests.worker.training.test_build.Noted", "word": "done"},)
    run = replace(run, trainer=replace(run.trainer, kwargs=kwargs, callbacks=callbacks))
    (trained,) = train(tmp_path, run)
    assert trained.state is RunState.COMPLETED, trained.error
    assert 0 <= trained.metrics["eval_my_accuracy"] <= 1
    assert Noted.told == ["done"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"callbacks": ({"_target_": "transformers.EarlyStoppingCallback", "early_stopping_patienc": 2},)},
            r"trainer\.callbacks\.early_stopping_patienc is 2, .*Did you mean 'early_stopping_patience'",
        ),
        (
            {"kwargs": {"data_collator": {"_target_": "transformers.DataCollatorForSeq2Seq", "pad_to_multiple": 4}}},
            r"trainer\.data_collator\.pad_to_multiple is 4, .*Did you mean 'pad_to_multiple_of'",
        ),
        (
            {"kwargs": {"compute_metrics": {"_target_": "tests.worker.training.test_build.accuracy", "prediktion": 4}}},
            r"trainer\.compute_metrics\.prediktion is 4, .*Did you mean 'prediction'",
        ),
    ],
)
def test_a_misspelt_argument_of_what_a_trainer_is_given_is_named(
    spec: Spec, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    run = spec()
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, replace(run, trainer=replace(run.trainer, **changes)))


def test_an_unknown_trainer_argument_is_named(spec: Spec, tmp_path: Path) -> None:
    run = spec()
    run = replace(run, trainer=replace(run.trainer, kwargs={"compute_metric": {"_target_": "builtins.len"}}))
    with pytest.raises(ConfigError, match=r"takes no 'compute_metric'. Did you mean 'compute_metrics'"):
        train(tmp_path, run)


def test_the_adapters_load_with_peft(spec: Spec, tiny_model: Path, tmp_path: Path) -> None:
    """Both ways in which people load them; the tokenizer lies beside."""
    (run,) = train(tmp_path, spec(args={"max_steps": 4, "learning_rate": 0.1}))
    auto = AutoPeftModelForCausalLM.from_pretrained(run.paths.final)
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), run.paths.final)
    one, two = (dict(model.named_parameters()) for model in (auto, by_hand))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert one[name].abs().sum() > 0 and (one[name] == two[name]).all()
    assert (run.paths.final / "tokenizer_config.json").is_file()


def test_a_plain_transformers_trainer_works_too(spec: Spec, tmp_path: Path, tiny_model: Path) -> None:
    """The engine assumes nothing of TRL: rows that are tokenized already, and an adapter wrapped around the model."""
    import json

    rows = tmp_path / "tokens.jsonl"
    rows.write_text("".join(json.dumps({"input_ids": list(range(3, 19))}) + "\n" for _ in range(16)))
    args = {"per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "num_train_epochs": 1}
    run = run_spec(tiny_model, rows, trainer="transformers.Trainer", args_target="transformers.TrainingArguments")
    collator = {"_target_": "transformers.DataCollatorForLanguageModeling", "mlm": False}
    run = replace(run, trainer=replace(run.trainer, args=args, kwargs={"data_collator": collator}))
    (trained,) = train(tmp_path / "experiment", run)
    assert trained.state is RunState.COMPLETED, trained.error
    assert [chunk.step for chunk in trained.chunks] == [1, 2, 3, 4]


class Surroundings(TrainerCallback):
    """Notes where its run believes to be."""

    seen: list[tuple[str, str | None]] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.seen.append((os.getcwd(), os.environ.get("MY_SETTING")))


def test_a_run_trains_in_the_directory_and_environment_of_its_job(spec: Spec, tmp_path: Path) -> None:
    """``hydra.job.chdir`` and ``hydra.job.env_set`` hold while the run trains, and for no one else."""
    job = OmegaConf.create(
        {"hydra": {"job": {"chdir": True, "env_set": {"MY_SETTING": "7"}}, "runtime": {"output_dir": str(tmp_path)}}}
    )
    callbacks = ({"_target_": "tests.worker.training.test_build.Surroundings"},)
    run = spec(args={"max_steps": 4})
    engine = Engine(
        ExperimentSpec(name="test", accelerator="cpu", control=ControlSpec(enabled=False)), ExperimentPaths(tmp_path)
    )
    here = os.getcwd()
    HydraConfig.instance().cfg = job
    try:
        engine.add(replace(run, trainer=replace(run.trainer, callbacks=callbacks)), 0)
    finally:
        HydraConfig.instance().cfg = None
    engine.run()
    engine.close()
    assert engine.experiment.runs[0].state is RunState.COMPLETED
    assert set(Surroundings.seen) == {(str(tmp_path), "7")} and len(Surroundings.seen) == 4
    assert os.getcwd() == here and "MY_SETTING" not in os.environ
