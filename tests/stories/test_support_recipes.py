"""The recipes customer_support, fit_and_eval and search on a tiny model, and every command in their pages composed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recipes.customer_support.format import to_chat
from tests.support.recipe_pages import ROOT, check_names, composed, gpu_commands, page_of, train
from tests.support.tiny import write_jsonl

ARTICLES = ROOT / "recipes/customer_support/articles.jsonl"
pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")


SMALL = ["trainer.args.max_length=192", "dataset.max_samples=8", "dataset.eval_size=4"]
SMALL += ["evaluation.generate.max_new_tokens=4"]


def test_customer_support_trains(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command as it stands, on its own articles: two adapters, two learning rates, ranked by what they answer."""
    monkeypatch.chdir(tmp_path)
    root, runs = train(monkeypatch, "customer_support", tiny_model, "peft=lora_qv,lora_qkvo", "lr=1e-3,1e-4", *SMALL)
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "4")] * 4
    assert all(run["objective"] == run["eval_rouge_l"] != "" for run in runs)
    adapters = [json.loads((root / f"runs/{n}/checkpoints/final/adapter_config.json").read_text()) for n in range(4)]
    small, large = (8, ["q_proj", "v_proj"]), (32, ["k_proj", "o_proj", "q_proj", "v_proj"])
    assert [(one["r"], sorted(one["target_modules"])) for one in adapters] == [small, small, large, large]
    assert len({run["eval_loss"] for run in runs}) == 4


def test_adapters_are_fitted_and_the_best_is_compared_with_its_base(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an adapter has answered at its last boundary it answers once more, beside the base, and with limits."""
    monkeypatch.chdir(tmp_path)
    root, runs = train(monkeypatch, "fit_and_eval", tiny_model, "lr=1e-2,1e-4", *SMALL)
    assert [(run["state"], run["step"]) for run in runs] == [("completed", "4")] * 4
    best = min(runs[:2], key=lambda run: int(run["rank"]))
    adapter, base = runs[2:]
    assert adapter["parent"] == base["parent"] == best["run"]
    said = [
        [json.loads(line)["answer"] for line in (root / name).read_text(encoding="utf-8").splitlines()]
        for name in (f"runs/{best['run']}/generations.jsonl", "runs/2/items.jsonl", "runs/3/items.jsonl")
    ]
    assert set(said[0][-4:]) == set(said[1]), "asked the same in the same words, it says the same"
    assert adapter["eval_rouge_l"] == best["eval_rouge_l"]
    assert len(said[1]) == len(said[2]) == 4 and set(said[1]) != set(said[2])
    with (root / "differences.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {row["run"], row["against"]} == {"2", "3"} and row["questions"] == "4"


def test_search_trains(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search asks again where the policy has stopped a run, until its budget is spent."""
    rows = [{"question": f"May I deposit {dollars}?", "answer": f"A bank takes {dollars}."} for dollars in range(20)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    space = ["lr=tag(log,interval(1e-5,1e-2))", "peft.r=choice(4,8)", "search.n_trials=2", "search.budget=4"]
    root, runs = train(monkeypatch, "search", tiny_model, f"dataset.path={file}", *space, *SMALL)
    ops = [json.loads(line) for line in (root / "ops.jsonl").read_text(encoding="utf-8").splitlines()]
    stopped = [int(run["run"]) for run in runs if run["state"] == "stopped"]
    assert len(runs) == 4 and 1 <= len(stopped) <= 3
    assert {op["by"] for op in ops} == {"policy/halving"}
    storage = JournalStorage(JournalFileBackend(str(root / "study.journal")))
    trials = optuna.load_study(study_name="rfflow", storage=storage).trials
    pruned = {trial.user_attrs["run"] for trial in trials if trial.state.name == "PRUNED"}
    assert len(trials) == 4 and pruned <= set(stopped) and pruned
    said = capsys.readouterr().out
    assert "search: ranked by eval_loss" in said and "Best of the search: lr=" in said


@pytest.mark.parametrize("recipe", ["customer_support", "fit_and_eval", "search"])
def test_every_command_for_a_gpu_composes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The arguments in its page are TRL's and PEFT's; tests/stories/test_readme.py composes the other commands."""
    monkeypatch.chdir(tmp_path)
    page = page_of(recipe)
    assert page.startswith(f"    python -m rfflow +recipe={recipe} --multirun ")
    commands = gpu_commands(page)
    assert len(commands) >= (1 if recipe == "fit_and_eval" else 3)
    # One configuration of a search is enough: they differ in what was sampled.
    words = ["search.n_trials=1", "search.budget=1"] if recipe == "search" else []
    for command in commands:
        runs = list(composed(command, monkeypatch, capsys, *words))
        assert runs, command
        for run in runs:
            assert run.spec.peft is not None
            check_names(run.spec)


# --- the functions and data of recipes/customer_support ---------------------------------------------------------------


def test_rows_become_conversations() -> None:
    """Those of the articles, whose questions stand in two columns, and those of Bitext's data."""
    article = {"article": "Blue Account", "heading": "How long does it take? ", "answer": "- 2 days.\n- Or less.\n"}
    chat = to_chat(article, question=["article", "heading"], system="Be brief.")
    assert chat == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Blue Account: How long does it take?"},
        ],
        "completion": [{"role": "assistant", "content": "- 2 days.\n- Or less."}],
    }
    bitext = {"flags": "B", "instruction": "cancel {{Order Number}}", "intent": "cancel_order", "response": "Sure."}
    chat = to_chat(bitext, question="instruction", answer="response")
    assert [message["content"] for message in chat["prompt"][1:] + chat["completion"]] == [
        "cancel {{Order Number}}",
        "Sure.",
    ]
    assert [message["role"] for message in to_chat(bitext, "instruction", "response", None)["prompt"]] == ["user"]


def test_the_articles_are_whole_and_short() -> None:
    """Every row can be read, none is there twice, and all have room in max_length; their license lies beside them."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in ARTICLES.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["answer"] for row in rows}) == 400
    assert all(set(row) == {"article", "heading", "answer"} and all(row.values()) for row in rows)
    assert max(len(row["answer"]) for row in rows) <= 280
    assert "Sierra Research" in ARTICLES.with_suffix(".LICENSE").read_text(encoding="utf-8")
