"""The recipes for preferences and rewards: trained on a tiny model, and every command in their pages composed."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from pathlib import Path

import pytest

from recipes.dpo.format import to_preference
from recipes.grpo.format import number, to_prompt
from tests.launch.test_cli import Shell
from tests.support.recipe_pages import ROOT, check_names, composed, page_of
from tests.support.tiny import write_jsonl

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

PAIRS = [
    {
        "article_sent": f"the shop has said that it sold {count} lamps on monday.",
        "correct_sent": f"the shop sold {count} lamps.",
        "incorrect_sent": f"the shop bought {count} lamps.",
    }
    for count in range(20)
]
PROBLEMS = [
    {"passage": f"Ann has {count} eggs.", "question": "How many has she?", "answer": f"{count} (eggs)"}
    for count in range(20)
]
CHANGES = {
    "dpo": ["trainer.args.max_length=256"],
    "grpo": ["trainer.args.max_completion_length=4", "trainer.args.num_generations=2"],
}
OTHERS = [
    ("trainer=kto", "objective.metric=eval_loss", "objective.direction=minimize"),
    ("trainer=reward", "objective.metric=eval_accuracy"),
]


@pytest.mark.parametrize(
    ("recipe", "chosen", "metric"),
    [
        ("dpo", (), "eval_rewards/accuracies"),
        *[("dpo", words, words[1].partition("=")[2]) for words in OTHERS],
        ("grpo", (), "reward"),
        ("grpo", ("trainer=rloo",), "reward"),
    ],
)
def test_it_trains(
    recipe: str,
    chosen: tuple[str, ...],
    metric: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a few steps, with the recipe's own function and rewards, on rows like its own."""
    from rfflow import __main__ as cli

    file = write_jsonl(tmp_path / "rows.jsonl", {"dpo": PAIRS, "grpo": PROBLEMS}[recipe])
    monkeypatch.chdir(tmp_path)
    words = [f"+recipe={recipe}", *chosen, "model=hub", f"model.name={tiny_model}", f"dataset.path={file}", "chunks=2"]
    words += ["dataset.eval_size=4", "dataset.max_samples=8", "peft=lora_small", "--multirun", "lr=1e-3,1e-4"]
    monkeypatch.setattr(sys, "argv", ["rfflow", *words, *CHANGES[recipe]])
    cli.main()
    (root,) = Path("outputs", recipe).iterdir()
    with open(root / "runs.csv", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    steps = "8" if "trainer=kto" in chosen else "4"  # it takes pairs apart
    assert [(run["state"], run["chunk"], run["step"]) for run in runs] == [("completed", "2", steps)] * 2
    assert all(run["objective"] == run[metric] for run in runs)


@pytest.mark.parametrize("recipe", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_every_command_of_its_page_composes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those for GPUs and models that are not here; and the arguments are TRL's, PEFT's and from_pretrained's."""
    monkeypatch.chdir(tmp_path)
    page = page_of(recipe)
    commands = re.findall(r"(?m)^ {4}python -m rfflow (.*)$", page)
    assert all(" ".join(words) in page for words in OTHERS if recipe == "dpo")
    assert len(commands) >= 5 and page.startswith("    python -m rfflow")
    for command in commands:
        for run in composed(command, monkeypatch, capsys):
            check_names(run.spec)


def test_vllm_is_reached_by_trls_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the training, or a server; but one server cannot have the weights of two runs."""
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    page = (ROOT / "recipes/grpo/README.md").read_text(encoding="utf-8")
    colocate, server = (
        next(line for line in re.findall(r"(?m)^ {4}python -m rfflow (.*)$", page) if f"vllm_mode={mode}" in line)
        for mode in ("colocate", "server")
    )
    assert "vllm_enable_sleep_mode: true" in rfflow(*shlex.split(colocate.partition("--multirun")[0]), "--cfg", "job")
    assert "vllm_mode: server" in rfflow(*shlex.split(server), "--cfg", "job") and not rfflow.engines
    said = rfflow(*shlex.split(server), "--multirun", "lr=1e-5,1e-6")
    assert rfflow.status == 1 and not rfflow.engines
    assert "Runs 0 and 1 both generate with the vLLM server http://127.0.0.1:8000, and a server has the" in said
    rfflow(*shlex.split(colocate))
    assert rfflow.status == 0 and len(rfflow.labels) == 2


def test_rows_become_preferences_and_prompts() -> None:
    row = to_preference(PAIRS[3], request="Short: ")
    assert row["prompt"] == [{"role": "user", "content": "Short: the shop has said that it sold 3 lamps on monday."}]
    assert row["chosen"][0]["content"] == "the shop sold 3 lamps." != row["rejected"][0]["content"]
    prompt = to_prompt(PROBLEMS[7])
    assert prompt["answer"] == "7" and prompt["prompt"][-1]["content"] == "Ann has 7 eggs. How many has she?"
    assert [message["role"] for message in prompt["prompt"]] == ["system", "user", "assistant", "user"]
    assert [message["role"] for message in to_prompt(PROBLEMS[7], shots=0)["prompt"]] == ["system", "user"]
    assert [number(text) for text in ("3 * 4 = 12\n#### 1,200", "9 apples", "none")] == ["1200", "9", "none"]
