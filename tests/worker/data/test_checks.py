"""Rows, batches and models that do not fit together are said in a sentence before any training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import RunSpec
from rfflow.errors import ConfigError
from tests.support.tiny import make_rows, run_spec, write_jsonl
from tests.worker.training.test_exactness import train_together


@pytest.fixture(scope="module")
def silent_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("silent") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def talk(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "SFT": [{"messages": talk("a") + talk("b", "assistant")}] * 8,
    "DPO": [{"prompt": talk("a"), "chosen": talk("b", "assistant"), "rejected": talk("c", "assistant")}] * 8,
    "GRPO": [{"prompt": talk("a")}] * 8,
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_conversations_need_a_template(kind: str, silent_model: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", CONVERSATIONS[kind])
    run = run_spec(silent_model, file, trainer=f"trl.{kind}Trainer", args_target=f"trl.{kind}Config")
    if kind == "GRPO":
        args = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
        run = replace(run, trainer=replace(run.trainer, args={**args, "num_generations": 2}))
    with pytest.raises(ConfigError, match=r"holds conversations, and the tokenizer .* has no chat template"):
        train_together([run], tmp_path / "experiment")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"args": {"per_device_eval_batch_size": 8}, "eval_size": 2},
            "The evaluation set has 2 rows, fewer than a batch",
        ),
        ({"args": {"per_device_train_batch_size": 200}}, "The training set has 96 rows, fewer than a batch"),
    ],
)
def test_a_batch_that_must_be_full_needs_the_rows(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    change["args"]["dataloader_drop_last"] = True
    with pytest.raises(ConfigError, match=said):
        train_together([run_spec(tiny_model, tiny_data, chunks=1, **change)], tmp_path)


def test_answers_must_divide_the_evaluation_batch(tiny_model: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": row["prompt"]} for row in make_rows(12)])
    run = run_spec(tiny_model, file, eval_size=3, trainer="trl.GRPOTrainer", args_target="trl.GRPOConfig")
    args = {key: value for key, value in run.trainer.args.items() if key != "max_length"}
    args |= {"per_device_eval_batch_size": 3, "num_generations": 2}
    kwargs = {"reward_funcs": ["tests.worker.training.test_grpo.few_vowels"]}
    run = replace(run, trainer=replace(run.trainer, args=args, kwargs=kwargs))
    with pytest.raises(ConfigError, match="per_device_eval_batch_size is 3, which the 2 answers to each prompt"):
        train_together([run], tmp_path / "experiment")


def test_preferences_need_both_answers(tiny_model: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": row["prompt"], "chosen": "x"} for row in make_rows(4)])
    run: RunSpec = run_spec(tiny_model, file, trainer="trl.DPOTrainer", args_target="trl.DPOConfig")
    with pytest.raises(ConfigError, match=r"has the columns prompt, chosen. trl.DPOTrainer reads .* rejected"):
        train_together([run], tmp_path / "experiment")


def test_what_shows_only_when_training_begins_is_a_sentence_too(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such optimizer")

    monkeypatch.setattr("transformers.Trainer.create_optimizer_and_scheduler", fail)
    monkeypatch.setattr("transformers.Trainer.create_optimizer", fail)
    with pytest.raises(ConfigError, match=r"Run 0 .*The trainer cannot begin: no such optimizer"):
        train_together([run_spec(tiny_model, tiny_data)], tmp_path)


@pytest.mark.parametrize("changed", ["train", "eval"])
def test_rows_must_leave_room_for_an_answer(tiny_model: Path, tmp_path: Path, changed: str) -> None:
    """TRL drops such rows in silence, and fails on a data set without rows."""
    long = [{"prompt": row["prompt"] + "again " * 20, "completion": row["completion"]} for row in make_rows(8)]
    rows = {"train": make_rows(8), "eval": make_rows(8)} | {changed: long}
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", made) for name, made in rows.items()}
    run = run_spec(tiny_model, files["train"], dataset={"eval_path": str(files["eval"])})
    name = "training" if changed == "train" else "evaluation"
    with pytest.raises(ConfigError, match=rf"Nothing is left of the 8 {name} rows: .*max_length \(64 tokens\)"):
        train_together([run], tmp_path / "experiment")


def test_what_trl_drops_is_said(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """How many, why, and the first of them; and the run trains on what TRL leaves."""
    rows = make_rows(8)
    for index in (3, 7):
        rows[index]["prompt"] += "again " * 20
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in ("train", "easy", "hard")}
    write_jsonl(files["easy"], make_rows(2))
    sets = {name: str(files[name]) for name in ("easy", "hard")}
    run = run_spec(tiny_model, files["train"], chunks=1, dataset={"eval_path": sets})
    ((trained,), _) = train_together([run], tmp_path / "experiment")
    assert trained.plan is not None and trained.plan.steps == 2
    said = [record.getMessage() for record in caplog.records if "TRL drops" in record.getMessage()]
    assert [line.partition(" rows")[0] for line in said] == ["TRL drops 2 of 8 training", "TRL drops 2 of 8 hard"]
    assert all("max_length (64 tokens)" in line and "first row 3 (from 0)" in line for line in said)
