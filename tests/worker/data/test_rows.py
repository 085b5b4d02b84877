"""Rows from files, folders and formatting functions, and what is said when they are not as they should be."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import logging
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.errors import ConfigError
from rfflow.worker.data.rows import load_data
from tests.support.tiny import make_rows, write_jsonl

SFT = TrainerSpec(target="trl.SFTTrainer", args_target="trl.SFTConfig")
DPO = TrainerSpec(target="trl.DPOTrainer", args_target="trl.DPOConfig")
GRPO = TrainerSpec(target="trl.GRPOTrainer", args_target="trl.GRPOConfig")


def load(path: Path | str, trainer: TrainerSpec | None = SFT, seed: int = 42, **settings: object):
    return load_data(DatasetSpec(path=str(path), **settings), seed, trainer)  # type: ignore[arg-type]


def refused(path: Path | str, trainer: TrainerSpec | None = SFT, **settings: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, trainer, **settings)
    return str(error.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Write a module of the user's own into the current directory; return its name."""
    monkeypatch.chdir(tmp_path)
    # As under the console script, which does not put the current directory there; restored afterwards.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    name = f"my_module_{abs(hash(request.node.nodeid))}"

    def write(code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", "saved", "folder"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = make_rows(8)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif suffix == "saved":
        Dataset.from_list(rows).save_to_disk(str(path))
    else:
        write_jsonl(path / "part-0.jsonl", rows[:5])
        write_jsonl(path / "part-1.jsonl", rows[5:])
    data = load(path)
    assert data.train.to_list() == rows
    assert data.eval is None


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in make_rows(3)).encode()))
    assert load(path).train.to_list() == make_rows(3)


def test_a_file_inside_an_installed_package_is_read_without_importing_it(tmp_path, monkeypatch) -> None:
    write_jsonl(tmp_path / "some_package/data/rows.jsonl", make_rows(3))
    (tmp_path / "some_package/__init__.py").write_text("raise RuntimeError('needs much to be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load("pkg://some_package/data/rows.jsonl").train.to_list() == make_rows(3)


def test_messages_and_text_are_read(tmp_path: Path) -> None:
    chat = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    assert load(write_jsonl(tmp_path / "chat.jsonl", chat)).train.to_list() == chat
    text = [{"text": "once"}, {"text": "twice"}]
    assert load(write_jsonl(tmp_path / "text.jsonl", text)).train.to_list() == text


def test_plain_text_is_read_by_paragraph_document_or_line(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("Once upon\r\na time.\n\n\n\nThe \u00e9nd.\n".encode())
    assert [row.strip() for row in load(path).train["text"]] == ["Once upon\na time.", "The \u00e9nd."]
    assert load(path, sample_by="line").train["text"][:] == ["Once upon", "a time.", "", "", "", "The \u00e9nd."]
    assert load(path, sample_by="document").train["text"][:] == ["Once upon\na time.\n\n\n\nThe \u00e9nd.\n"]
    evaluated = load(path, eval_path=str(path), sample_by="line").eval
    assert evaluated is not None and len(evaluated) == 6
    path.write_bytes(b"caf\xe9")
    assert "can't decode byte 0xe9" in refused(path) and "Save it as UTF-8." in refused(path)


@pytest.mark.parametrize("formatted", [False, True])
def test_json_in_another_encoding_is_refused(tmp_path: Path, module, formatted: bool) -> None:
    """`datasets` itself would read it without complaint, until somebody looks at a row."""
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1") * 4)
    settings = {"formatting_func": {"_target_": module("def f(row): return row") + ".f"}} if formatted else {}
    message = refused(path, **settings)
    assert "latin.jsonl'" in message and "Line 1 is not UTF-8 text: " in message and "Save it as UTF-8." in message


def test_every_text_of_a_folder_is_trained_on(tmp_path: Path) -> None:
    """Whatever its name: `datasets` alone would put test.txt aside as a split."""
    for name in ("a.txt", "test.txt", "deeper/b.txt", ".hidden.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"{name}, first.\n\nSecond.\n")
    rows = load(tmp_path / "texts", sample_by="document").train["text"][:]
    assert [row.partition(",")[0] for row in rows] == ["a.txt", "deeper/b.txt", "test.txt"]
    assert len(load(tmp_path / "texts").train) == 6
    assert "has no splits" in refused(tmp_path / "texts", eval_split="test")
    for number in range(2):
        write_jsonl(tmp_path / f"rows/{number}.jsonl", make_rows(2))
    (tmp_path / "rows/NOTES.txt").write_text("Beside other files, text is no data.")
    assert load(tmp_path / "rows").train.column_names == ["prompt", "completion"]


def test_a_saved_folder_with_splits_gives_both_and_stays_clean(tmp_path: Path) -> None:
    splits = {"train": Dataset.from_list(make_rows(6)), "test": Dataset.from_list(make_rows(8)[6:])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    before = sorted(tmp_path.rglob("*"))
    data = load(tmp_path / "saved", eval_split="test")
    data.train.map(lambda row: {"length": len(row["prompt"])})
    assert data.train.to_list() == make_rows(6)
    assert data.eval is not None and data.eval.to_list() == make_rows(8)[6:]
    assert sorted(tmp_path.rglob("*")) == before
    assert "'tset'" in refused(tmp_path / "saved", eval_split="tset")
    assert "train, test" in refused(tmp_path / "saved", eval_split="tset")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(3))
    load(path)
    write_jsonl(path, make_rows(5))
    assert len(load(path).train) == 5


# --- choosing rows and columns ----------------------------------------------------------------------------------------


def test_columns_are_chosen_and_renamed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qa.jsonl", [{"id": 7, "question": "why", "answer": "so"}])
    data = load(path, columns={"question": "prompt", "answer": "completion"})
    assert data.train.to_list() == [{"prompt": "why", "completion": "so"}]
    message = refused(path, columns={"qestion": "prompt"})
    assert "Did you mean 'question'" in message and "id, question, answer" in message


def test_held_out_rows_are_the_same_for_every_run_and_never_trained_on(tiny_data: Path) -> None:
    first, second = load(tiny_data, eval_size=16), load(tiny_data, eval_size=16)
    assert first.eval is not None and second.eval is not None
    assert first.eval.to_list() == second.eval.to_list()
    assert (len(first.train), len(first.eval)) == (80, 16)
    prompts = {row["prompt"] for row in first.train}
    assert prompts.isdisjoint(row["prompt"] for row in first.eval)
    assert first.train.to_list() == [row for row in make_rows() if row["prompt"] in prompts]
    other = load(tiny_data, eval_size=16, seed=1)
    assert other.eval is not None and other.eval.to_list() != first.eval.to_list()
    share = load(tiny_data, eval_size=0.25)
    assert share.eval is not None and len(share.eval) == 24


def test_max_samples_takes_the_first_rows_of_each(tiny_data: Path, tmp_path: Path) -> None:
    data = load(tiny_data, max_samples=10, max_eval_samples=4, eval_size=16)
    whole = load(tiny_data, eval_size=16)
    assert data.eval is not None and whole.eval is not None
    assert data.train.to_list() == whole.train.to_list()[:10]
    assert data.eval.to_list() == whole.eval.to_list()[:4]
    assert load(tiny_data, max_samples=5000).train.to_list() == make_rows()


def test_a_second_file_is_evaluated_on(tiny_data: Path, tmp_path: Path) -> None:
    second = write_jsonl(tmp_path / "eval.jsonl", make_rows(3))
    data = load(tiny_data, eval_path=str(second), eval_size=16)
    assert data.eval is not None and data.eval.to_list() == make_rows(3)
    assert len(data.train) == 96


@pytest.mark.parametrize("size", [96, 200, -1, 1.0, 1.5, 0.001, True])
def test_an_eval_size_that_leaves_nothing_is_refused(tiny_data: Path, size: float) -> None:
    message = refused(tiny_data, eval_size=size)
    assert repr(size) in message and "1 to 95" in message


def test_one_row_is_not_parted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", make_rows(1))
    assert "does not fit 1 row. Allowed: a share between 0 and 1 that" in refused(path, eval_size=0.1)
    assert "or 0 to hold none out" in refused(path, eval_size=0.1)
    assert len(load(path, eval_size=0).train) == 1


def test_a_count_below_one_is_refused(tiny_data: Path) -> None:
    assert "dataset.max_samples is 0" in refused(tiny_data, max_samples=0)


def test_empty_text_is_text_and_only_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TRL trains on it: on an empty prompt as on any, on an empty completion to learn where to end."""
    rows = [*make_rows(4), {"prompt": "", "completion": "so"}, {"prompt": "why", "completion": " "}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with caplog.at_level(logging.WARNING, "rfflow"):
        assert load(path).train.to_list() == rows
    assert "1 of 6 rows have empty text in 'completion', first row 5 (from 0), line 6" in caplog.text
    assert "'prompt'" not in caplog.text


def test_a_row_with_nothing_is_refused_with_its_line(tmp_path: Path) -> None:
    """TRL would stop at it in the midst of tokenizing; it leaves no row out, nor do we."""
    rows: list[dict] = [*make_rows(4), {"prompt": None, "completion": "so"}, {"completion": "so"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    path.write_text("\n\n" + path.read_text())
    assert "2 of 6 rows have nothing in 'prompt', first row 4 (from 0), line 7." in refused(path)
    chat = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": []}]
    assert "1 of 2 rows have nothing in 'messages', first row 1" in refused(write_jsonl(tmp_path / "chat.jsonl", chat))


def test_columns_that_the_trainer_does_not_read_may_be_empty(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "why", "completion": None, "answer": None}])
    assert len(load(path, GRPO).train) == 1


def test_whole_numbers_are_read_as_text(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "sums.jsonl", [{"prompt": "2+2=", "completion": 4}, {"prompt": "-1=", "completion": -1}]
    )
    assert load(path).train["completion"][:] == ["4", "-1"]
    write_jsonl(path, [{"prompt": "1/2=", "completion": 0.5}])
    assert "'completion' holds float64" in refused(path)
    write_jsonl(path, [{"prompt": "1=1", "completion": True}])
    assert "'completion' holds bool" in refused(path)


# --- formatting functions ---------------------------------------------------------------------------------------------


def test_a_formatting_function_from_the_current_directory_makes_the_rows(tmp_path: Path, module) -> None:
    name = module(
        "def chat(row, system='none'):\n"
        "    return {'prompt': system + ': ' + row['q'], 'completion': row['a']}\n"
        "def text(row):\n"
        "    return row['q'] + row['a']\n"
    )
    path = write_jsonl(tmp_path / "qa.jsonl", [{"q": "why", "a": "so"}, {"q": "how", "a": "thus"}])
    data = load(path, formatting_func={"_target_": f"{name}.chat", "system": "short"})
    assert data.train.to_list() == [
        {"prompt": "short: why", "completion": "so"},
        {"prompt": "short: how", "completion": "thus"},
    ]
    assert load(path, formatting_func=f"{name}.text").train.to_list() == [{"text": "whyso"}, {"text": "howthus"}]


def test_an_edited_formatting_function_gives_new_rows(tmp_path: Path, module) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"q": "why"}])
    name = module("def text(row):\n    return 'old ' + row['q']\n")
    assert load(path, formatting_func=f"{name}.text").train["text"][:] == ["old why"]
    module("def text(row):\n    return 'new: ' + row['q']\n")
    del sys.modules[name]
    importlib.invalidate_caches()
    assert load(path, formatting_func=f"{name}.text").train["text"][:] == ["new: why"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def f(row): return row['prmopt']",
            "row 0 (from 0), line 1: KeyError: 'prmopt'. Columns of the row: prompt, completion",
        ),
        ("def f(row): return 'x' * int(1 / (row['prompt'][8] != '2'))", "ZeroDivisionError"),
        ("def f(row): return None", "of type NoneType. Allowed: a string"),
        ("def f(row): return {'text' + row['prompt'][8]: 'x'}", "returned the columns"),
        ("def g(row): return 'x'\ng2 = 3", "has no 'f'. There: g, g2"),
        ("f = 3", "of type int, not a function"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
    ],
)
def test_a_wrong_formatting_function_is_refused_with_its_row(tiny_data: Path, module, code: str, said: str) -> None:
    assert said in refused(tiny_data, formatting_func={"_target_": f"{module(code)}.f"})


def test_rows_of_ones_own_are_not_for_a_recipes_function(tmp_path: Path) -> None:
    """``+recipe=sft dataset.path=my.jsonl`` keeps the recipe's function, which knows other columns."""
    path = write_jsonl(tmp_path / "my.jsonl", [{"prompt": "why", "completion": "so"}])
    said = refused(path, formatting_func={"_target_": "recipes.sft.format.to_chat"})
    assert "KeyError" in said and "Columns of the row: prompt, completion." in said
    assert "For rows of yours: dataset=local (in a file) or dataset=hub" in said


def test_the_row_number_of_a_failure_counts_in_the_file(tmp_path: Path, module) -> None:
    rows = [{"text": str(number)} for number in range(50)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    name = module("def f(row):\n    assert row['text'] != '31', 'here'\n    return row")
    for seed in range(3):
        with pytest.raises(ConfigError, match=r"row 31 \(from 0\), line 32: AssertionError: here"):
            load(path, seed=seed, formatting_func={"_target_": f"{name}.f"}, eval_size=10)


def test_a_missing_module_is_refused_with_the_nearest(tiny_data: Path, module) -> None:
    name = module("def f(row): return row")
    message = refused(tiny_data, formatting_func={"_target_": f"{name}x.f"})
    assert f"no module '{name}x'" in message and f"'{name}'" in message
    assert "blocklisted" in refused(tiny_data, formatting_func={"_target_": "os.system"})


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", make_rows(3))
    assert "Did you mean 'train.jsonl'" in refused(tmp_path / "trian.jsonl")
    assert f"In {tmp_path}: train.jsonl." in refused(tmp_path / "there/is/none.jsonl")
    assert "pip install --no-deps no-such-package" in refused("pkg://no_such_package/rows.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert "the file is empty" in refused(path) or "There are no rows in it" in refused(path)


def test_a_column_of_mixed_kinds_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*make_rows(2), {"prompt": "why", "completion": ["so"]}])
    message = refused(path)
    assert "'completion' holds text in some rows" in message and "'column" not in message
    assert "row 2 (from 0), line 3 has ['so'], a list" in message


def test_an_unparsable_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", make_rows(20))
    lines = path.read_text().splitlines()
    lines[12] = '{"prompt": "why", "completion": so}'
    path.write_text("\n".join(lines))
    assert "Line 13 is not JSON" in refused(path)
    lines[12] = '"why"'
    path.write_text("\n".join(lines))
    assert "Line 13 is not a JSON object" in refused(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    assert ".jsonl" in refused(tmp_path / "rows.xlsx")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.md").write_text("x")
    assert "In it: notes.md" in refused(tmp_path / "folder")
    (tmp_path / "rows.parquet").write_text("not parquet")
    assert "rows.parquet" in refused(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (SFT, "prompt + completion, or text, or messages"),
        (DPO, "prompt + chosen + rejected"),
        (GRPO, "trl.GRPOTrainer reads prompt."),
        (None, "A trainer reads"),
    ],
)
def test_wrong_columns_are_refused_and_both_sides_named(tmp_path: Path, trainer: TrainerSpec, said: str) -> None:
    message = refused(write_jsonl(tmp_path / "qa.jsonl", [{"question": "why", "answer": "so"}]), trainer)
    assert "columns question, answer" in message and said in message


def test_a_wrong_evaluation_set_is_told_from_the_training_set(tiny_data: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "eval.jsonl", [{"question": "why"}])
    assert f"The evaluation set {path} has the columns question" in refused(tiny_data, eval_path=str(path))
    path = write_jsonl(tmp_path / "none.jsonl", [{"prompt": None, "completion": "so"}])
    assert f"The evaluation set {path}: 1 of 1 rows have nothing in 'prompt'" in refused(tiny_data, eval_path=str(path))


def test_the_trainers_own_text_field_is_respected(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"content": 1}, {"content": 2}])
    trainer = TrainerSpec("trl.SFTTrainer", "trl.SFTConfig", args={"dataset_text_field": "content"})
    assert load(path, trainer).train.to_list() == [{"content": "1"}, {"content": "2"}]
    assert "or content" in refused(write_jsonl(tmp_path / "other.jsonl", [{"text": "once"}]), trainer)


def test_a_hub_name_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name is 'someone/some-data'.*Check the name and the network"):
        load_data(DatasetSpec(name="someone/some-data"), 42, SFT)
    with pytest.raises(ConfigError, match=r"give it as dataset\.path"):
        load_data(DatasetSpec(name="./rows.jsonl"), 42, SFT)


def test_a_split_of_a_single_file_is_refused(tiny_data: Path) -> None:
    assert "has no splits" in refused(tiny_data, eval_split="test")


# --- sharing work -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "formatted", "saved"])
def test_runs_that_tokenize_alike_find_the_work_of_the_first(tiny_data: Path, module, source: str) -> None:
    """The rows are on disk, so `map` of the same function is done once; and never is one taken for the other."""
    calls = Path("calls")
    calls.write_text("")
    settings: dict = {"eval_size": 16}
    if source == "formatted":
        settings["formatting_func"] = {"_target_": module("def f(row): return {**row, 'text': row['prompt']}") + ".f"}
    if source == "saved":
        rows = {"train": Dataset.from_list(make_rows()[:80]), "test": Dataset.from_list(make_rows()[80:])}
        DatasetDict(rows).save_to_disk("saved")
        tiny_data, settings = Path("saved"), {"eval_split": "test"}

    def tokenize(row: dict) -> dict:
        with calls.open("a") as file:
            file.write("x")
        return {"input_ids": list(row["prompt"].encode())}

    for _ in range(3):
        data = load(tiny_data, **settings)
        for rows in (data.train, data.eval):
            assert rows is not None
            tokenized = rows.map(tokenize)
            assert [bytes(ids).decode() for ids in tokenized["input_ids"]] == rows["prompt"][:]
    assert len(calls.read_text()) == 96
