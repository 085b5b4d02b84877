"""What a clone would be, said while one types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rfflow.dashboard.composing import Composer
from rfflow.dashboard.reader import Experiment
from tests.dashboard.made import composed

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composed(tmp_path_factory.mktemp("composed") / "one")


@pytest.fixture(scope="module")
def composer(root: Path) -> Composer:
    return Composer(Experiment(root))


def test_every_clone_of_a_sweep_is_told_key_by_key(composer: Composer) -> None:
    said = composer.check([0, 1], ["lr=5e-4", "peft.lora_alpha=7,9"], warm_start=False)
    assert said["ok"] and said["count"] == 4
    first = said["clones"][0]
    assert first["overrides"] == ["lr=5e-4", "peft.lora_alpha=7"] and first["parent"] == 0
    assert ["trainer.args.learning_rate", 0.001, 0.0005] in first["changes"]
    assert {key for key, _, _ in first["changes"]} == {"lr", "trainer.args.learning_rate", "peft.lora_alpha"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1e-3,,", "not in Hydra's grammar"),
        ("lr", "Write key=value"),
        ("nothing=1", "There is no nothing."),
        ("peft=lora_larg", "Did you mean peft=lora_large?"),
        ("trainer.args.learning_rat=1", "not an argument of SFTConfig. Did you mean 'learning_rate'?"),
        ("trainer.args.max_grad_norm=much", "SFTConfig takes: float."),
        ("trainer.args.lr_scheduler_type=cosin", "Did you mean 'cosine'?"),
        ("engine.devices=2", "which all runs share"),
        ("model.name=elsewhere/model", "an op may bring nothing that can be imported or loaded"),
        ("trainer._target_=os.system", "may not name code"),
        ("lr=${oc.env:HOME}", "Allowed in an op: plain values"),
    ],
)
def test_what_the_experiment_would_refuse_is_said_before(composer: Composer, override: str, said: str) -> None:
    answer = composer.check([0], [override], warm_start=False)
    assert not answer["ok"] and said in answer["error"]


def test_what_rfflow_itself_reads_is_no_mistake(composer: Composer) -> None:
    for value in ("auto", "true"):
        assert composer.check([0], [f"trainer.args.activation_checkpointing={value}"], warm_start=False)["ok"]


def test_a_warm_start_that_cannot_be_is_told(composer: Composer, root: Path) -> None:
    weights = root / "runs/0/checkpoints/last.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"")
    assert composer.check([0], ["lr=5e-4"], warm_start=True)["ok"]
    assert composer.check([0], ["peft.r=16"], warm_start=False)["ok"]
    assert "peft.r is 8 there and would be 16" in composer.check([0], ["peft.r=16"], warm_start=True)["error"]
    assert "an adapter" in composer.check([0], ["peft=none"], warm_start=True)["error"]
    assert "has not trained yet" in composer.check([1], [], warm_start=True)["error"]


def test_only_the_latest_check_of_a_page_is_answered(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody types on while the first is composed."""
    compose = composer._clone

    def slow(*arguments: object, **settings: object) -> object:
        composer._latest["page"] = 0.0
        return compose(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(composer, "_clone", slow)
    assert composer.check([0], ["lr=1,2"], warm_start=False, page="page") == {"superseded": True}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("l", "lr="),
        ("peft=lora_l", "peft=lora_large"),
        ("peft.lora_a", "peft.lora_alpha="),
        ("trainer.args.warm", "trainer.args.warmup_steps="),
        ("trainer.args.lr_scheduler_type=c", "trainer.args.lr_scheduler_type=cosine"),
    ],
)
def test_words_are_completed_as_on_the_command_line(composer: Composer, word: str, text: str) -> None:
    assert text in [match["text"] for match in composer.complete(0, word)["matches"]]


def test_nothing_is_completed_that_a_clone_may_not_set_nor_any_file(composer: Composer) -> None:
    for word in ("", "engine", "hydra", "trainer._t", "/", "dataset.path=/", "./"):
        found = [match["text"] for match in composer.complete(0, word)["matches"]]
        assert not any(
            text.startswith(("engine", "hydra", "/", "dataset.path=/")) or "_target_" in text for text in found
        )


def test_a_secret_is_neither_completed_nor_shown(tmp_path: Path) -> None:
    root = composed(tmp_path / "one", "+model.token=hf_abcdefgh")
    composer = Composer(Experiment(root))
    assert "hf_abcdefgh" not in str(composer.complete(0, "model.token="))
    assert "hf_abcdefgh" not in str(composer.check([0], ["model.token=other_secret"], warm_start=False))


def test_it_does_without_torch(root: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
from rfflow.dashboard.composing import Composer
from rfflow.dashboard.reader import Experiment
print(Composer(Experiment(Path({str(root)!r}))).check([0], ["lr=5e-4"], warm_start=False)["ok"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr[-2000:]
