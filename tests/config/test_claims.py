"""What runs that overlap in time cannot both have is refused before training, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rfflow.config.claims import ONE_A_PROCESS, Claims, check_alone, claims_of
from rfflow.errors import ConfigError

OWN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"output_dir": "a"}, {"output_dir": "b"}),
    ({"output_dir": "a"}, {"output_dir": "a/b"}),
    ({"output_dir": "ck", "save_strategy": "no"}, {"output_dir": "ck", "save_strategy": "no"}),  # it sees no file
    ({"hub_model_id": "me/it"}, {"hub_model_id": "me/it"}),  # neither pushes
    ({"push_to_hub": True, "hub_model_id": "me/a"}, {"push_to_hub": True, "hub_model_id": "me/b"}),
    ({"push_to_hub": True, "output_dir": "x/a"}, {"push_to_hub": True, "output_dir": "x/b"}),
    ({"report_to": ["wandb", "mlflow", "tensorboard", "neptune"]}, {"report_to": ["wandb", "mlflow", "tensorboard"]}),
    ({"report_to": "comet_ml"}, {"report_to": "none"}),
    ({"report_to": ["trackio"]}, {"report_to": ["trackio"]}),
    ({"report_to": ["trackio"], "run_name": "a"}, {"report_to": ["trackio"], "run_name": "b"}),
    ({"report_to": ["wandb"], "run_name": "a"}, {"report_to": ["wandb"], "run_name": "a"}),  # wandb allows that
    ({"use_vllm": True, "vllm_mode": "colocate"}, {"use_vllm": True, "vllm_mode": "colocate"}),
    ({"vllm_mode": "server"}, {"vllm_mode": "server"}),
]

SHARED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"output_dir": "ck"}, {"output_dir": "./ck/"}, "both write to trainer.args.output_dir {cwd}/ck.*'trainer.args"),
    ({"output_dir": "ck"}, {"output_dir": "ck", "save_strategy": "steps"}, "both write to trainer.args.output_dir"),
    (
        {"output_dir": "ck", "save_strategy": "no", "log_completions": True},
        {"output_dir": "ck", "save_strategy": "no", "log_completions": True},
        "both write to trainer.args.output_dir",
    ),
    ({"output_dir": "~/ck"}, {"output_dir": "{home}/ck"}, "both write to trainer.args.output_dir"),
    (
        {"push_to_hub": True, "hub_model_id": "me/it"},
        {"push_to_hub": True, "hub_model_id": "me/it"},
        r"both push to the hub repository 'me/it'.*hub_model_id=me/it-\$\{hydra:job.num\}'",
    ),
    (
        {"push_to_hub": True},
        {"push_to_hub": True},
        "both push to the hub repository 'checkpoints'",
    ),
    (
        {"push_to_hub": True, "output_dir": "a/x"},
        {"push_to_hub": True, "output_dir": "b/x"},
        "both push to the hub repository 'x'",
    ),
    *(
        ({"report_to": name}, {"report_to": ["tensorboard", name]}, f"both report to {name}, .* would be mixed")
        for name in ONE_A_PROCESS
    ),
    (
        {"report_to": ["trackio"], "run_name": "a"},
        {"report_to": ["trackio"], "run_name": "a"},
        "both report to trackio under trainer.args.run_name 'a'",
    ),
    (
        {"use_vllm": True, "vllm_mode": "server"},
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 8000},
        "both generate with the vLLM server http://0.0.0.0:8000, and a server has the weights of one run",
    ),
    (
        {"use_vllm": True, "vllm_mode": "server"},
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 8001},
        "both generate with the vLLM vllm_group_port 51216",
    ),
]


@pytest.mark.parametrize(("first", "second"), OWN, ids=str)
def test_what_is_a_runs_own_is_let_be(first: dict[str, Any], second: dict[str, Any], tmp_path: Path) -> None:
    claims = Claims()
    for number, arguments in enumerate((first, second, second)):
        claims.take(min(number, 1), claims_of(arguments.get, tmp_path))  # the second's twice: it is built anew


@pytest.mark.parametrize(("first", "second", "said"), SHARED, ids=str)
def test_what_two_runs_would_share_is_refused(
    first: dict[str, Any], second: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    second = {key: value.format(home=tmp_path) if key == "output_dir" else value for key, value in second.items()}
    claims = Claims()
    claims.take(3, claims_of(second.get, tmp_path))
    with pytest.raises(ConfigError, match=f"^Runs 1 and 3 {said.replace('{cwd}', str(tmp_path))}"):
        claims.take(1, claims_of(first.get, tmp_path))


def test_a_relative_directory_is_where_the_run_stands(tmp_path: Path) -> None:
    """With hydra.job.chdir=true each job stands in a directory of its own."""
    claims = Claims()
    for number in range(2):
        claims.take(number, claims_of({"output_dir": "ck"}.get, tmp_path / str(number)))


def test_what_a_run_has_written_stays_its_own(tmp_path: Path) -> None:
    """What it only used while it trained, another may have then; and all of it, if it never trained."""
    arguments = {"output_dir": "ck", "report_to": "comet_ml"}
    claims = Claims()
    claims.take(0, claims_of(arguments.get, tmp_path))
    claims.release(0, has_trained=False)
    claims.take(1, claims_of(arguments.get, tmp_path))
    claims.release(1, has_trained=True)
    claims.take(2, claims_of({"report_to": "comet_ml"}.get, tmp_path))
    with pytest.raises(ConfigError, match="Runs 1 and 2 both write"):
        claims.take(2, claims_of({"output_dir": "ck"}.get, tmp_path))


@pytest.mark.parametrize("name", ["use_liger_kernel", "full_determinism"])
def test_what_changes_everybodys_libraries_is_the_same_for_all(name: str) -> None:
    claims = Claims()
    claims.agree(0, {}.get, "cuda")
    claims.agree(1, {name: False}.get, "cuda")
    with pytest.raises(
        ConfigError, match=rf"trainer\.args\.{name} is False for run 0 and True for run 2, .* same for all"
    ):
        claims.agree(2, {name: True}.get, "cuda")


def test_on_a_cpu_a_run_may_be_deterministic_by_itself() -> None:
    claims = Claims()
    for number, value in enumerate((False, True, False)):
        claims.agree(number, {"full_determinism": value}.get, "cpu")


@pytest.mark.parametrize("name", ["deepspeed", "fsdp", "enable_jit_checkpoint"])
def test_what_takes_the_whole_process_is_refused(name: str) -> None:
    check_alone({}.get)
    check_alone({name: None if name == "deepspeed" else False}.get)
    with pytest.raises(ConfigError, match=f"^trainer.args.{name} is "):
        check_alone({name: {"stage": 3} if name == "deepspeed" else True}.get)
