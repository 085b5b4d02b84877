"""What stands in a CSV or JSON file is what is trained on, to the letter."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.errors import ConfigError
from rfflow.worker.data.files import read_hub
from rfflow.worker.data.rows import load_data
from tests.support.tiny import write_jsonl

SFT = TrainerSpec("trl.SFTTrainer", "trl.SFTConfig")
KTO = TrainerSpec("trl.KTOTrainer", "trl.KTOConfig")

# What pandas, pyarrow or datasets would take for something else than text.
ODD = [
    "00704",
    "1e5",
    "1.10",
    "12345678901234567890123",
    "-0",
    "None",
    "NA",
    "null",
    "nan",
    "True",
    "false",
    "1969-07-20",
    "2020-01-01 00:00:00",
    "2021-05-03T10:00:00Z",
    " two blanks before and behind  ",
    'a "quoted" word',
    "a\nline, and\r\nanother; a\ttab",
    "",
    "[1, 2]",
    "ünï ✓",
]


def read(path: Path, trainer: TrainerSpec | None = SFT, **settings: Any) -> list[dict[str, Any]]:
    return load_data(DatasetSpec(path=str(path), **settings), 42, trainer).train.to_list()


def refused(path: Path, trainer: TrainerSpec | None = SFT) -> str:
    with pytest.raises(ConfigError) as error:
        read(path, trainer)
    return str(error.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("text", [ODD, ["00704"] * 3, ["1969-07-20"] * 3, [""] * 3, ["True"] * 3, ["None", "1"]])
def test_text_of_csv_is_text(tmp_path: Path, separator: str, text: list[str]) -> None:
    """Whole columns of what looks like numbers, times, truths or nothing, too."""
    path = tmp_path / ("rows.tsv" if separator == "\t" else "rows.csv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("prompt", "completion"), *zip(text, reversed(text), strict=True)])
    assert read(path) == [{"prompt": p, "completion": c} for p, c in zip(text, reversed(text), strict=True)]


@pytest.mark.parametrize("form", ["lines", "array", "columns"])
@pytest.mark.parametrize("text", [ODD, ["1969-07-20"] * 3, ["2021-05-03T10:00:00Z"] * 3])
def test_text_of_json_is_text(tmp_path: Path, form: str, text: list[str]) -> None:
    rows = [{"messages": [{"role": "user", "content": each}], "text": each} for each in text]
    path = tmp_path / "rows.json"
    if form == "lines":
        write_jsonl(path, rows)
    elif form == "array":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}, indent=1))
    assert read(path) == rows


def test_text_beside_other_kinds_stays_text(tmp_path: Path) -> None:
    """`datasets` keeps a column of many kinds as JSON, and would take the text "704" for a number."""
    rows = [
        {"prompt": "a", "completion": "b", "answer": "00704", "tools": [{"name": "x", "default": "1e5"}]},
        {"prompt": "c", "completion": "d", "answer": 704, "tools": [{"name": "y"}]},
        {"prompt": "e", "completion": "f", "answer": "704", "tools": [{"default": "null"}]},
        {"prompt": "g", "completion": "h", "answer": ["true"], "tools": None},
    ]
    assert read(write_jsonl(tmp_path / "rows.jsonl", rows)) == rows


def test_messages_of_different_keys_are_kept_as_they_are(tmp_path: Path) -> None:
    """Without the keys that only others have: a chat template may ask whether they are there."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
            ]
        },
        {"messages": [{"role": "user", "content": "1969-07-20", "name": "b"}]},
    ]
    assert read(write_jsonl(tmp_path / "rows.jsonl", rows)) == rows


def test_a_column_that_comes_late_is_there(tmp_path: Path) -> None:
    rows = [{"text": f"{number}"} for number in range(2500)]
    rows[2400]["note"] = "late"
    read_rows = read(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [row["text"] for row in read_rows] == [row["text"] for row in rows]
    assert [row["note"] for row in read_rows if row["note"]] == ["late"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_packed_files_are_read(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"rows{kind}{suffix}"
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    path.write_bytes(pack(b"text\n00704\n" if kind == ".csv" else b'{"text": "00704"}\n'))
    assert read(path) == [{"text": "00704"}]
    if suffix != ".bz2":
        path.write_bytes(path.read_bytes()[:-9])
        assert "damaged" in refused(path)
    path.write_bytes(b"text\n00704\n")
    assert "damaged, or not packed as its name says" in refused(path)


def test_zstd_is_read_or_its_package_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "takes the package zstandard: pip install zstandard" in refused(path)
    monkeypatch.undo()
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(b'{"text": "00704"}\n'))
    assert read(path) == [{"text": "00704"}]
    path.write_bytes(b"not packed")
    assert "damaged, or not packed" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"prompt,completion\na,b\nx,y,z\n", "Line 3 has 3 cells, the header has 2: prompt, completion."),
        (b'prompt,completion\n"a\nb",c\n\nx\n', "Line 5 has 1 cell, the header has 2"),
        (b'prompt,completion\n"a"b,c\n', "Line 2 is not CSV"),
        (b'prompt,completion\n"a,c\n', "Line 2 is not CSV"),
        (b"prompt,prompt\na,b\n", "two columns 'prompt'"),
        (b"prompt,completion\n", "There are no rows in it."),
        (b"prompt,completion\na,b\ncaf\xe9,c\n", "Line 3 is not UTF-8 text"),
        ("prompt,completion\na,b\n".encode("utf-16"), "It is UTF-16"),
    ],
)
def test_what_is_not_csv_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    message = refused(path)
    assert said in message and str(path) in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n\n{"text": }\n', "Line 3 is not JSON (Expecting value, column 10)"),
        ('{"text": "a", "id": 1}\n{"text": "b", "id": 123456789012345678901}\n', "Line 2, column 'id'"),
        ('{"text": "a"}\n{"text": "\\ud83d"}\n', "Line 2, column 'text'"),
        ('[{"text": "a"},\n3]', "Entry 1 (from 0) of the array is not an object"),
        ('{\n"text": "a",\n"rows": ["b"]\n}', "It is one object with text, rows."),
        ("[]", "There are no rows in it."),
    ],
)
def test_what_is_not_json_rows_is_refused_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert said in refused(path)


def test_the_files_of_a_folder_are_read_like_any(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, code in (("train-1", "00704"), ("train-2", "NA"), ("test", "00001")):
        (folder / f"{name}.csv").write_text(f"prompt,completion\na,{code}\nb,{code}\n")
    assert [row["completion"] for row in read(folder)] == ["00704", "00704", "NA", "NA"]
    assert [row["completion"] for row in read(folder, split="train[1:3]+test[:1]")] == ["00704", "NA", "00001"]
    assert load_data(DatasetSpec(path=str(folder), eval_split="test"), 42, SFT).eval["completion"][:] == ["00001"] * 2
    write_jsonl(folder / "train-3.jsonl", [{"prompt": "a", "completion": "b"}])
    read(folder)
    assert "these files are not read: train-3.jsonl" in caplog.text


def test_labels_of_csv_are_true_or_false(tmp_path: Path) -> None:
    """As text, "False" would count as true."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\na,b,True\na,c,false\na,d,0\na,e,1\n")
    assert [row["label"] for row in read(path, KTO)] == [True, False, False, True]
    path.write_text("prompt,completion,label\na,b,True\na,c,good\n")
    assert "holds 'good' in row 1 (from 0), line 3. Allowed: true" in refused(path, KTO)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    assert read(path) == [{"text": "a"}]
    with monkeypatch.context() as patch:
        patch.setattr("rfflow.worker.data.tables._write_json", lambda *_: pytest.fail("it was read again"))
        assert read(path) == [{"text": "a"}]
    write_jsonl(path, [{"text": "b"}])
    assert read(path) == [{"text": "b"}]


def test_csv_of_the_hub_is_text_too(tmp_path: Path) -> None:
    """As far as `datasets` reads it: what it takes for numbers or nothing is read again."""
    (tmp_path / "data.csv").write_text("prompt,completion\na,00704\nb,NA\nc,\n")
    rows = read_hub(str(tmp_path), None, "train").rows
    assert rows["completion"][:] == ["00704", "NA", ""]
    (tmp_path / "data.csv").unlink()
    write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a", "completion": "1969-07-20"}])
    with pytest.raises(ConfigError, match="takes the text in completion for times"):
        read_hub(str(tmp_path), None, "train")


def test_what_only_a_trainer_knows_how_to_read_is_left_as_it_is(tmp_path: Path) -> None:
    """A trainer of one's own, or TRL's with a formatting function of its own, may want numbers and nothing."""
    rows = [{"text": None, "completion": 1}, {"text": "a", "completion": 2}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read(path, TrainerSpec("transformers.Trainer", "transformers.TrainingArguments")) == rows
    assert read(path, TrainerSpec("trl.SFTTrainer", "trl.SFTConfig", kwargs={"formatting_func": "my_code.f"})) == rows


def test_the_mark_of_an_encoding_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("once\n\nupon", encoding="utf-8-sig")
    assert read(path) == [{"text": "once"}, {"text": "upon"}]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "once"}\n', encoding="utf-8-sig")
    assert read(path) == [{"text": "once"}]
