"""Tensors that Fabric saves are safetensors, whole or not there at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from rfflow.worker.models.safetensors_io import SafetensorsIO


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1, plugins=[SafetensorsIO()])


def test_what_fabric_saves_it_loads_and_anybody_can_read(fabric: Fabric, tmp_path: Path) -> None:
    """Sections and names, slashes and dots among them; folders are made."""
    weights = {"layer.0/weight": torch.randn(2, 3).to(torch.bfloat16), "bias": torch.tensor(1.0)}
    saved = {"weights": weights, "steps": {"0": torch.arange(3)}}
    fabric.save(tmp_path / "new" / "last.safetensors", saved)
    loaded = fabric.load(tmp_path / "new" / "last.safetensors")
    assert {section: set(content) for section, content in loaded.items()} == {
        "weights": {"layer.0/weight", "bias"},
        "steps": {"0"},
    }
    assert torch.equal(loaded["weights"]["layer.0/weight"], weights["layer.0/weight"])
    assert loaded["weights"]["bias"].shape == ()
    assert "steps/0" in load_file(tmp_path / "new" / "last.safetensors")


def test_tied_and_strided_tensors_can_be_saved(fabric: Fabric, tmp_path: Path) -> None:
    """safetensors refuses memory that two tensors share; parameters that require gradients are no matter."""
    weight = torch.nn.Parameter(torch.randn(4, 6))
    tensors = {"a": weight, "b": weight, "transposed": weight.t(), "part": weight[1:3], "none": torch.empty(0)}
    fabric.save(tmp_path / "tied", {"weights": tensors})
    loaded = fabric.load(tmp_path / "tied")["weights"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(fabric: Fabric, tmp_path: Path) -> None:
    """The operating system refuses to let the file grow, as it would on a full disk."""
    path = tmp_path / "last.safetensors"
    fabric.save(path, {"weights": {"a": torch.ones(3)}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"last\.safetensors cannot be written: .*"):
            fabric.save(path, {"weights": {"a": torch.ones(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(fabric.load(path)["weights"]["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100])
def test_a_damaged_checkpoint_is_an_error_that_names_it(fabric: Fabric, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"last\.safetensors cannot be read"):
        fabric.load(path)


def test_a_truncated_checkpoint_is_an_error(fabric: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    fabric.save(path, {"weights": {"a": torch.ones(100)}})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="cannot be read"):
        fabric.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        fabric.load(path)
