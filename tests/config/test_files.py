"""Expressions of rules as people write them in configuration files and on the command line, without a backslash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rfflow.config import files
from rfflow.config.files import FileConfigSource
from rfflow.policies import Rules, replay
from rfflow.policies.runner import make_policy
from tests.launch.test_cli import Shell, rfflow  # noqa: F401
from tests.policies.test_replay import record_experiment
from tests.support.stub_engine import StubEngine

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

RULES = """
rules:
  - {name: weak, at_chunk: 2, select: {worst: 50%, by: eval_loss}, do: stop}
  - {name: sick, when: "loss > 3 * best.loss", do: delete}
  - {name: refine, at_chunk: 4, select: {best: 1}, do: clone, overrides: ["lr=${parent.lr * 0.5}"], warm_start: true}
"""


def templates(shell: Shell) -> list[str]:
    """The overrides of the last rule, as the policy of the experiment has them."""
    node = shell.engines[0].spec.policy
    assert node is not None
    policy: Any = make_policy(node)[0]
    assert isinstance(policy, Rules)
    return [template.text for template in policy.rules[-1].overrides]


def test_a_policy_of_ones_own_directory(rfflow: Shell, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "conf" / "policy").mkdir(parents=True)
    (tmp_path / "conf" / "policy" / "team.yaml").write_text("_target_: rfflow.policies.Rules\n" + RULES)
    words = ["--config-dir", str(tmp_path / "conf"), "+recipe=sft", "--multirun", "policy=team", "lr=1e-3,1e-4"]
    out = rfflow(*words)
    assert rfflow.status == 0, out
    assert templates(rfflow) == ["lr=${parent.lr * 0.5}"]


def test_rules_in_a_recipe_beside_references_of_hydras_own(
    rfflow: Shell,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    recipe = """# @package _global_
defaults:
  - sft
  - override /policy: rules
name: ${oc.env:TEAM}
policy:
  rules:
    - name: mine
      at_chunk: 1
      do: clone
      overrides: ["lr=${parent.lr}", 'peft.r=\\${parent.peft.r * 2}', "seed=${oc.env:SEED}"]
"""
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text(recipe)
    monkeypatch.setenv("TEAM", "ours")
    monkeypatch.setenv("SEED", "3")
    out = rfflow("--config-dir", str(tmp_path / "conf"), "+recipe=mine")
    assert rfflow.status == 0, out
    assert rfflow.engines[0].spec.name == "ours"
    assert templates(rfflow) == ["lr=${parent.lr}", "peft.r=${parent.peft.r * 2}", "seed=3"]


@pytest.mark.parametrize("sweep", [["lr=1e-3"], ["--multirun", "lr=1e-3,1e-4"]], ids=["alone", "sweep"])
def test_rules_on_the_command_line(
    rfflow: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    sweep: list[str],
) -> None:
    """Clones are composed with the same words, once more."""
    clones = []

    def run(engine: StubEngine) -> None:
        clones.append(engine.composer.compose_clone(engine.runs[0], ("lr=5e-4",), 7)[0])
        stub(engine)

    stub = StubEngine.run
    monkeypatch.setattr(StubEngine, "run", run)
    rule = '{name: refine, at_chunk: 1, do: clone, overrides: ["lr=${parent.lr * 0.5}"]}'
    out = rfflow("+recipe=sft", "policy=rules", f"policy.rules=[{rule}]", *sweep)
    assert rfflow.status == 0, out
    assert templates(rfflow) == ["lr=${parent.lr * 0.5}"]
    assert [clone.config["lr"] for clone in clones] == [5e-4]


def test_rules_on_the_command_line_of_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = '{name: refine, at_chunk: 2, select: {best: 1}, do: clone, overrides: ["seed=${chunk * 2}"]}'
    root = record_experiment(tmp_path / "experiment", runs=2)
    assert replay.main([str(root), "policy=rules", f"policy.rules=[{rule}]"], files.CONF) == 0
    assert "clone run 0 with seed=4: rule refine" in capsys.readouterr().out


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    load = FileConfigSource._load

    def noted(self: FileConfigSource, name: str, text: str) -> Any:
        reads.append(text)
        return load(self, name, text)

    monkeypatch.setattr(FileConfigSource, "_load", noted)
    source = FileConfigSource(provider="main", path=f"file://{tmp_path}")
    file = tmp_path / "team.yaml"
    file.write_text("# @package _global_\ndefaults: [sft]\nlr: 1e-3\n")
    first = source.load_config("team")
    del first.config["defaults"], first.header["package"]  # as Hydra does with what it gets
    second = source.load_config("team")
    assert second.config == {"defaults": ["sft"], "lr": 1e-3}
    assert second.header == {"package": "_global_"}
    assert len(reads) == 1
    file.write_text("lr: 1e-4\n")
    assert source.load_config("team").config == {"lr": 1e-4}
