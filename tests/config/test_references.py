"""What people typed with ``${...}`` in it is kept as typed, and said in a sentence where it stands for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rfflow.config.references import as_typed, resolved
from rfflow.errors import ConfigError
from tests.launch.test_cli import Shell, rfflow

__all__ = ["rfflow"]

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

COUPLED = "peft.lora_alpha=${peft.r}"


@pytest.mark.parametrize("mode", [(), ("--multirun",), ("--multirun", "lr=1e-3,1e-4"), ("search=random", "--multirun")])
def test_a_coupling_is_kept_and_holds_for_clones(rfflow: Shell, mode: tuple[str, ...]) -> None:
    """The clone has another rank, and so another alpha."""
    swept = ["peft.r=choice(2,4)"] if "search=random" in mode else ["peft.r=2"]
    said = rfflow("+recipe=sft", *swept, COUPLED, *mode)
    assert rfflow.status == 0, said
    (engine,) = rfflow.engines
    assert COUPLED in (engine.composer.overrides_of(0) or ())
    spec, label, _ = engine.composer.compose_clone(engine.runs[0], ["peft.r=32"], 9)
    assert spec.peft is not None and (spec.peft["r"], spec.peft["lora_alpha"]) == (32, 32)
    assert COUPLED in (engine.composer.overrides_of(9) or ()) and "peft.r=32" in label


def test_runs_are_named_by_what_was_typed(rfflow: Shell) -> None:
    rfflow("+recipe=sft", "--multirun", "peft.lora_alpha=${peft.r},${chunks}")
    assert rfflow.labels == ["peft.lora_alpha=${peft.r}", "peft.lora_alpha=${chunks}"]
    assert [(run.spec.peft or {})["lora_alpha"] for run in rfflow.engines[0].runs] == [
        (rfflow.engines[0].runs[0].spec.peft or {})["r"],
        4,
    ]


def test_a_secret_by_reference_stands_nowhere_in_the_overrides(
    rfflow: Shell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush")
    rfflow("+recipe=sft", "+model.token=${oc.env:MY_TOKEN}")
    (engine,) = rfflow.engines
    assert engine.composer.overrides_of(0) == ("+recipe=sft", "+model.token=${oc.env:MY_TOKEN}")
    assert "hush" not in " ".join(rfflow.labels) and engine.runs[0].spec.model.kwargs["token"] == "hush"


@pytest.mark.parametrize(
    "mode", [(), ("--multirun", "lr=1e-3,1e-4"), ("--multirun", "search=random", "lr=choice(1,2)")]
)
@pytest.mark.parametrize("override", ["+note=${oc.env:NOT_SET_ANYWHERE}", "name=a_${oc.env:NOT_SET_ANYWHERE}"])
def test_a_variable_that_is_not_set_is_named_with_who_asks(
    rfflow: Shell,
    mode: tuple[str, ...],
    override: str,
) -> None:
    said = rfflow("+recipe=sft", override, *mode)
    assert (rfflow.status, rfflow.engines) == (1, [])
    assert f"{override}: the environment variable NOT_SET_ANYWHERE is not set. Set it, or write" in said
    assert "Traceback" not in said and "object_type" not in said and len(said.splitlines()) < 8


def test_a_variable_in_a_clones_overrides_too(rfflow: Shell) -> None:
    rfflow("+recipe=sft")
    (engine,) = rfflow.engines
    with pytest.raises(ConfigError, match=r"^lr=\$\{oc\.env:NOT_SET\}: the environment variable NOT_SET is not set"):
        engine.composer.compose_clone(engine.runs[0], ["lr=${oc.env:NOT_SET}"], 1)


def test_what_refers_to_no_key_or_is_missing_is_said() -> None:
    cfg = OmegaConf.create({"peft": {"r": 4, "alpha": "${peft.rr}"}})
    with pytest.raises(ConfigError, match=r"peft\.alpha is \$\{peft\.rr\} in the .*no peft\.rr .*mean 'peft\.r'\?"):
        resolved(cfg)
    with pytest.raises(ConfigError, match=r"^peft\.r is not given, and has no value of its own\. Type peft\.r="):
        resolved(OmegaConf.create({"peft": {"r": "???"}}))


def test_overrides_are_read_as_they_stand(tmp_path: Path) -> None:
    OmegaConf.save({"seed": 1, "overrides": ["a=${seed}"]}, tmp_path / "multirun.yaml")
    assert as_typed(OmegaConf.load(tmp_path / "multirun.yaml").overrides) == ["a=${seed}"]
