"""Folders as BEIR has them become questions with the documents that are relevant to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rfflow.config.spec import DatasetSpec, TrainerSpec
from rfflow.errors import ConfigError
from rfflow.evals import metrics
from rfflow.evals.beir import to_document
from rfflow.evals.questions import Question, read_documents, read_questions
from tests.support.tiny import write_jsonl

READS = "rfflow.evals.questions.Question"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    queries = [{"_id": f"q{n}", "text": f"What is {n}?", "metadata": {}} for n in range(4)]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d1", "title": "One", "text": "one"}, {"_id": "2", "text": "two"}])
    (tmp_path / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", "q2\td1\t1", "q0\td1\t2", "q0\td7\t1", "q0\td8\t0", "q3\td1\t0"]
    (tmp_path / "qrels/test.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def read(folder: Path, **kwargs: str) -> list[Question]:
    from rfflow.worker.data.rows import load_data

    spec = DatasetSpec(path=str(folder), **{"split": "test", **kwargs})  # type: ignore[arg-type]
    return read_questions(load_data(spec, 0, TrainerSpec(READS, READS)).train)


def test_the_queries_of_a_split_become_questions(folder: Path) -> None:
    questions = read(folder)
    assert [(each.id, each.text, each.relevant) for each in questions] == [
        ("q0", "What is 0?", ("d1", "d7")),
        ("q2", "What is 2?", ("d1",)),
    ]
    found, relevant = ["d9", "d1"], questions[0].relevant
    assert metrics.recall(found, relevant, 2) == 0.5 and metrics.reciprocal_rank(found, relevant, 2) == 0.5
    assert questions[0].references == ()


def test_answers_are_read_where_there_are_some(folder: Path) -> None:
    rows = [{"_id": f"q{n}", "text": "?", "metadata": {"answer": n}} for n in (0, 2)]
    write_jsonl(folder / "queries.jsonl", rows)
    assert [each.references for each in read(folder)] == [("0",), ("2",)]


def test_documents_have_their_ids_and_titles(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    documents = read_documents(map(to_document, rows))
    assert [(each.id, each.title, each.text) for each in documents] == [("d1", "One", "one"), ("2", "", "two")]


def test_what_is_not_as_beir_has_it_is_said(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'dev' in qrels/\. There: test"):
        read(folder, split="dev")
    qrels = folder / "qrels/test.tsv"
    qrels.write_text("q0 d1 1\n")
    with pytest.raises(ConfigError, match=r"test\.tsv, line 1: 'q0 d1 1'\. Allowed: query-id"):
        read(folder)
    qrels.write_text("q9\td1\t1\n")
    with pytest.raises(ConfigError, match="speaks of query 'q9'"):
        read(folder)
    qrels.write_text("q0\td1\t0\n")
    with pytest.raises(ConfigError, match="names no relevant document"):
        read(folder)
    qrels.write_text("q0\td1\t1\n")
    (folder / "queries.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ConfigError, match=r"queries\.jsonl, line 1: KeyError"):
        read(folder)
