"""What things take, and what there is, in bytes."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rfflow.errors import ConfigError
from rfflow.worker.memory.sizes import (
    Need,
    free_bytes,
    group_headroom,
    loaded_bytes,
    lora_bytes,
    parse_bytes,
    process_headroom,
    show_bytes,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (800, 800),
        ("800", 800),
        (" 800MB ", 800_000_000),
        ("8 gb", 8_000_000_000),
        ("1.5k", 1500),
        ("2T", 2 * 10**12),
        ("1GiB", 2**30),
        ("2Ki", 2048),
        (None, 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: int | str | None, count: int) -> None:
    assert parse_bytes(text, "here") == count


@pytest.mark.parametrize("text", ["", "MB", "-1", "8 XB", "1e9", "5iB", "lots", True, "8GB8"])
def test_a_size_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine\.memory\.host_limit is .*Allowed: bytes, such as"):
        parse_bytes(text, "engine.memory.host_limit")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3e13, "30000.0 GB")]
)
def test_sizes_are_written_for_people(count: float, text: str) -> None:
    assert show_bytes(count) == text


# --- what is not there yet --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({}, 100 * 4 + 60 * 4 + 40 * 8),
        ({"dtype": "bfloat16"}, 100 * 2 + 60 * 2 + 40 * 8),
        ({"dtype": "auto"}, 100 * 4 + 60 * 2 + 40 * 8),
        ({"quantization_config": {"load_in_4bit": True}}, 100 * 4 + 60 / 2 + 40 * 8),
        ({"quantization_config": {"load_in_8bit": True}, "dtype": "bfloat16"}, 100 * 2 + 60 + 40 * 8),
        ({"quantization_config": {"quant_method": "hqq"}}, None),
        ({"subfolder": "inner"}, None),
    ],
    ids=str,
)
def test_a_model_is_measured_by_the_headers_of_its_files(
    tmp_path: Path, kwargs: dict[str, Any], size: float | None
) -> None:
    """In two files with an index: embeddings in float32, a matrix in bfloat16, and integers."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"embed_tokens.weight": torch.zeros(10, 10)}, tmp_path / "1.safetensors")
    second = {"layer.weight": torch.zeros(6, 10, dtype=torch.bfloat16), "ids": torch.zeros(40, dtype=torch.int64)}
    save_file(second, tmp_path / "2.safetensors")
    places = {"embed_tokens.weight": "1.safetensors", **dict.fromkeys(second, "2.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert loaded_bytes(str(tmp_path), kwargs) == size


def test_a_model_that_was_saved_quantised_takes_what_it_takes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}')
    save_file(
        {"q": torch.zeros(100, dtype=torch.int32), "scales": torch.zeros(8).half()}, tmp_path / "model.safetensors"
    )
    assert loaded_bytes(str(tmp_path), {}) == 416


def test_what_cannot_be_known_is_not_guessed(tmp_path: Path) -> None:
    assert loaded_bytes(str(tmp_path), {}) is None
    assert loaded_bytes("nobody/has-this", {}) is None
    assert loaded_bytes("../no name of the hub/", {}) is None


@pytest.mark.parametrize("targets", ["all-linear", r".*\.layers\.0\..*_proj", ["q_proj", "down_proj"]])
def test_an_adapter_is_counted_as_peft_makes_it(tiny_model: Path, targets: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    counted = lora_bytes({"r": 5, "target_modules": targets}, model)
    wrapped = get_peft_model(model, LoraConfig(r=5, target_modules=targets, task_type="CAUSAL_LM"))
    assert counted == sum(4 * weight.numel() for weight in wrapped.parameters() if weight.requires_grad) > 0
    assert lora_bytes({"num_virtual_tokens": 8}, model) == lora_bytes({"r": 5, "target_modules": None}, model) == 0


@pytest.mark.parametrize(
    ("optim", "state"),
    [
        ("adamw_torch_fused", 200),
        ("paged_adamw_32bit", 200),
        ("schedule_free_adamw", 200),
        ("adamw_bnb_8bit", 50),
        ("paged_adamw_8bit", 50),
        ("sgd", 0),
        ("adafactor", 0),
        ("one that nobody knows", 0),
    ],
)
def test_the_state_of_an_optimizer_is_counted_where_it_is_known(optim: str, state: int) -> None:
    assert Need.of(100, 100, optim) == Need(100, 100, state)


# --- what there is ----------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    """Version 2, the group above has the limit; cached files would make room."""
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("0::/job/step\n")
    write(mount / "job" / "step", memory__max="max\n", memory__current="700\n", memory__stat="inactive_file 50\n")
    assert group_headroom(groups, mount) == math.inf
    write(mount / "job", memory__max="1000\n", memory__current="800\n", memory__stat="anon 600\ninactive_file 150\n")
    assert group_headroom(groups, mount) == 350
    write(mount / "job", memory__current="1300\n")
    assert group_headroom(groups, mount) == 0


def test_the_limits_of_a_container_of_the_older_kind_count(tmp_path: Path) -> None:
    """Its path is one that only the host can see, so the limit stands at the root of the mount."""
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("5:cpu:/\n4:memory:/docker/abc\n0::/\n")
    names = {"memory__limit_in_bytes": "1000", "memory__usage_in_bytes": "400", "memory__stat": "total_inactive_file 9"}
    write(mount / "memory", **names)
    assert group_headroom(groups, mount) == 609


def test_where_there_are_no_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert group_headroom(tmp_path / "none", tmp_path) == math.inf
    assert 10_000_000 < free_bytes(torch.device("cpu")) < 10**15


def test_limits_of_the_process_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ulimit -d`` and ``ulimit -v``, as some batch systems set them."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmSize:\t    3000 kB\nVmData:\t    1000 kB\n", encoding="utf-8")
    limits = {resource.RLIMIT_DATA: resource.RLIM_INFINITY, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    assert process_headroom(status) == math.inf
    limits[resource.RLIMIT_AS] = 5000 * 1024
    assert process_headroom(status) == 2000 * 1024
    limits[resource.RLIMIT_DATA] = 2500 * 1024
    assert process_headroom(status) == 1500 * 1024
    assert process_headroom(tmp_path / "none") == math.inf
