"""The recipes pretraining and pii_masking: trained on a tiny model, their functions, and the data that they bring."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from recipes.pii_masking import scores
from recipes.pii_masking.format import from_ai4privacy, to_masking
from tests.support.recipe_pages import ROOT, check_names, composed, gpu_commands, page_of, train

MASKING = ROOT / "recipes/pii_masking"
pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

BOOK = "".join(f"{number} men went to mow, went to mow a meadow.\n\n" for number in range(1, 90))


def test_pretraining_trains(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a .txt file of the user's own, an adapter and every weight, with no token padded or thrown away."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(BOOK)
    own = ["dataset=local", "dataset.path=book.txt", "dataset.eval_size=20", "dataset.max_samples=60"]
    root, runs = train(monkeypatch, "pretraining", tiny_model, "peft=lora,none", "lr=1e-2", *own)
    assert [run["state"] for run in runs] == ["completed"] * 2
    for run in runs:
        assert float(run["objective"]) == float(run["eval_perplexity"])
        assert math.isclose(float(run["eval_perplexity"]), math.exp(float(run["eval_loss"])), rel_tol=1e-3)
    logged = [json.loads(line)["metrics"] for line in (root / "runs/0/metrics.jsonl").read_text().splitlines()]
    perplexities = [metrics["eval_perplexity"] for metrics in logged if "eval_perplexity" in metrics]
    assert len(perplexities) == 3, "before training, and at the end of each chunk"
    assert perplexities[-1] < 0.9 * perplexities[0]
    # No step but the last has less than two full sequences.
    tokens = [metrics["num_tokens"] for metrics in logged if "num_tokens" in metrics]
    steps = int(runs[0]["step"])
    assert tokens[0] == 2 * 128 and (steps - 1) * 2 * 128 < tokens[-1] <= steps * 2 * 128
    assert (root / "runs/0/checkpoints/final/adapter_model.safetensors").is_file()
    assert (root / "runs/1/checkpoints/final/model.safetensors").is_file()


def test_pii_masking_trains(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own rows, and ranked by what the model writes, which on a tiny model leaks and masks nothing."""
    monkeypatch.chdir(tmp_path)
    short = ["dataset.max_samples=8", "dataset.max_eval_samples=4", "evaluation.generate.max_new_tokens=4"]
    _, runs = train(monkeypatch, "pii_masking", tiny_model, "lr=1e-3,1e-4", "trainer.args.max_length=384", *short)
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "4")] * 2
    for run in runs:
        assert run["objective"] == run["eval_mask_recall"]
        found = [float(run[f"eval_{name}"]) for name in ("mask_recall", "mask_precision", "exact_match", "leaked")]
        assert found == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dataset.path=boook.txt", "no such file or folder. Did you mean 'book.txt'"),
        ("dataset.sample_by=page", "dataset.sample_by is 'page'. Allowed: line, paragraph, document."),
        ("dataset.path=rows.csv", "has the columns content"),
    ],
)
def test_what_pretraining_cannot_read_is_said_before(
    setting: str,
    said: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(BOOK)
    Path("rows.csv").write_text("content\nonce\ntwice\nthrice\n")
    own = ["dataset=local", "dataset.path=book.txt", "dataset.eval_size=1", setting]
    with pytest.raises(SystemExit):
        train(monkeypatch, "pretraining", tiny_model, *own)
    out, err = capsys.readouterr()
    assert said in " ".join((out + err).split())


@pytest.mark.parametrize("recipe", ["pretraining", "pii_masking"])
def test_every_command_for_a_gpu_composes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The arguments in its page are TRL's and PEFT's; tests/stories/test_readme.py composes the other commands."""
    monkeypatch.chdir(tmp_path)
    page = page_of(recipe)
    assert page.startswith(f"    python -m rfflow +recipe={recipe} --multirun ")
    commands = gpu_commands(page)
    assert len(commands) >= 3
    for command in commands:
        runs = list(composed(command, monkeypatch, capsys))
        assert len(runs) > 1, command
        for run in runs:
            check_names(run.spec)


# --- the functions of recipes/pii_masking -----------------------------------------------------------------------------


def test_rows_become_requests_and_masked_answers() -> None:
    """Those of the recipe, and those of ai4privacy's data sets, whose entities are JSON or a list."""
    row = {"text": "I am Ann.", "masked": "I am [NAME].", "entities": ["Ann"]}
    wanted = {
        "prompt": [{"role": "system", "content": "Mask."}, {"role": "user", "content": "I am Ann."}],
        "completion": [{"role": "assistant", "content": "I am [NAME]."}],
        "entities": ["Ann"],
    }
    assert to_masking(row, "Mask.") == wanted
    spans: list[dict[str, Any]] = [{"value": "Ann", "start": 5, "end": 8, "label": "NAME"}]
    for mask in (spans, json.dumps(spans)):
        hub = {"source_text": "I am Ann.", "target_text": "I am [NAME].", "privacy_mask": mask, "language": "en"}
        assert from_ai4privacy(hub, "Mask.") == wanted
    assert from_ai4privacy({"source_text": "I am Ann.", "masked_text": "I am [NAME].", "privacy_mask": spans}, "Mask.")


def test_the_scores_tell_leaks_from_losses() -> None:
    wanted = ["I am [NAME], call [PHONE].", "Hello [NAME]!", "What are my options?"]
    entities = [["Ann", "555-0100"], ["Bob  Stone"], []]

    def score(*said: str) -> tuple[float, ...]:
        found = scores.masks(said, wanted)
        exact, leaked = scores.exact_match(said, wanted), scores.leaked(said, entities)
        return tuple(round(value, 3) for value in (exact, found["mask_recall"], found["mask_precision"], leaked))

    assert score(*wanted) == (1, 1, 1, 0)
    assert score("I am Ann, call 555-0100.", "Hello bob stone!", "What are my options?") == (0.333, 0, 1, 1)
    assert score("I am [NAME], call 555-0100.", "Hello [NAME]!", "What are my [NAME]?") == (0.333, 0.667, 0.667, 0.333)
    assert score("I am [EMAIL], call [PHONE].", "Hello [NAME] [NAME]!", "Options?") == (0, 0.667, 0.5, 0)
    assert score("", "", "") == (0, 0, 1, 0), "nothing said leaks nothing, and masks nothing"
    assert scores.leaked(["I am Annette."], [["Ann"]]) == 0


# --- the data that come with the recipes ------------------------------------------------------------------------------


def test_the_masked_rows_are_what_the_scores_take_for_perfect() -> None:
    """Every entity stands in its text and not in the masked one; no sentence is trained on and evaluated."""
    rows = {
        name: [json.loads(line) for line in (MASKING / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    }
    assert (len(rows["train"]), len(rows["eval"])) == (347, 47)
    for row in rows["train"] + rows["eval"]:
        assert all(entity in row["text"] for entity in row["entities"])
        assert scores.leaked([row["masked"]], [row["entities"]]) == 0
        assert len(re.findall(r"\[[A-Z]+\]", row["masked"])) == len(row["entities"])
    trained_on = {row["masked"] for row in rows["train"]}
    assert not any(row["masked"] in trained_on for row in rows["eval"])
    assert {kind for row in rows["eval"] for kind in re.findall(r"\[([A-Z]+)\]", row["masked"])} == {
        "NAME",
        "EMAIL",
        "PHONE",
        "ADDRESS",
        "CARD",
    }
    text = (MASKING / "train.jsonl").read_text(encoding="utf-8")
    assert set(re.findall(r"@([\w.-]+)\b", text)) == {"example.com", "example.org", "example.net"}
    assert "MIT License" in (MASKING / "templates.LICENSE").read_text(encoding="utf-8")


def test_the_dictionary_is_plain_text_with_an_entry_a_paragraph() -> None:
    entries = (ROOT / "recipes/pretraining/devils_dictionary.txt").read_text(encoding="ascii").strip().split("\n\n")
    assert len(entries) == len(set(entries)) == 434
    assert all(re.match(r"[A-Z][A-Z' -]+, [a-z.]+\. \S", entry) and "\n" not in entry for entry in entries)
