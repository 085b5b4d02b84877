"""What a wheel carries, and that it works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return folder / _build("build_wheel", folder)


def test_the_wheel_carries_all_that_the_command_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"rfflow/{name}" for name in ours} <= names
    assert {"hydra_plugins/rfflow_launcher/__init__.py", "recipes/sft/README.md", "rfflow/py.typed"} <= names
    assert {"recipes/customer_support/articles.jsonl", "recipes/customer_support/articles.LICENSE"} <= names
    assert {"recipes/pretraining/devils_dictionary.txt", "recipes/pii_masking/train.jsonl"} <= names
    static = ROOT / "rfflow/dashboard/static"
    page = {path.relative_to(ROOT).as_posix() for path in static.rglob("*") if path.is_file()}
    assert page and page <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "hydra_plugins",
        "recipes",
        "rfflow",
    }
    assert not any("_plugins/hydra_plugins" in name or "__pycache__" in name for name in names)
    assert "hydra_plugins/__init__.py" not in names, "a namespace: other packages put their plug-ins into it too"


def test_the_wheel_works_in_another_directory(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    said = subprocess.run(
        [sys.executable, "-m", "rfflow", "+recipe=sft", "--cfg", "all", "peft=lora_small"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    config = yaml.safe_load(said.stdout)
    assert config["name"] == "sft"
    assert config["hydra"]["launcher"]["_target_"] == "hydra_plugins.rfflow_launcher.RfflowLauncher"
    assert str(unpacked / "rfflow/conf") in [source["path"] for source in config["hydra"]["runtime"]["config_sources"]]
    assert said.stderr == ""


def test_another_application_finds_the_launcher_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Nothing of it imports rfflow, and nothing heavy is imported by looking."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher\n"
        "print([found.__name__ for found in Plugins.instance().discover(Launcher)])\n"
        "print(sys.modules['hydra_plugins.rfflow_launcher'].__file__, 'rfflow' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    launchers, plugin = said.splitlines()
    assert "RfflowLauncher" in launchers
    assert plugin == f"{tmp_path / 'hydra_plugins/rfflow_launcher/__init__.py'} False"


def test_an_editable_installation_points_at_the_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / _build("build_editable", tmp_path)) as archive:
        (pointer,) = (name for name in archive.namelist() if name.endswith(".pth"))
        folders = archive.read(pointer).decode().split()
        entry_points = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt")))
        copied = [name for name in archive.namelist() if name != pointer and ".dist-info/" not in name]
    assert not copied, "what is edited in the checkout would not be what is imported"
    assert [Path(folder).resolve() for folder in folders] == [ROOT, ROOT / "rfflow/_plugins"]
    assert b"rfflow = rfflow.__main__:main" in entry_points


def test_the_tested_versions_lie_within_the_declared_ones() -> None:
    """constraints.txt names every dependency, at a version that pyproject.toml allows."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name == "vllm":  # it pins a torch of its own, and is tested with a stand-in
            continue
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


def _build(hook: str, folder: Path) -> str:
    """Call hatchling as pip and build do, without the second that an environment of its own takes."""
    code = f"import hatchling.build; print(hatchling.build.{hook}({str(folder)!r}))"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    return said.splitlines()[-1]
