"""Folders as BEIR has them: queries.jsonl, corpus.jsonl and qrels/<split>.tsv (Thakur et al., 2021)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rfflow.errors import ConfigError


def is_beir(folder: Path) -> bool:
    """Whether a folder has queries, and says which documents are relevant to them."""
    return (folder / "queries.jsonl").is_file() and (folder / "qrels").is_dir()


def read_queries(folder: Path, split: str, where: str) -> Iterator[dict[str, Any]]:
    """Yield the queries of a split, those about which something is said, in the order of their file.

    A document is relevant whose mark is above 0. The columns are id, question, relevant and references, which are what
    ``metadata`` has under ``answer`` or ``answers``, if anything.

    Raises:
        ConfigError: if there is no such split, or something is not as BEIR has it.
    """
    relevant = _read_qrels(folder, split, where)
    left = set(relevant)
    with (folder / "queries.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _read_line(line, folder / "queries.jsonl", number, where)
            if row["_id"] not in relevant:
                continue
            left.discard(row["_id"])
            said = row.get("metadata") or {}
            answers = said.get("answers", said.get("answer")) if isinstance(said, Mapping) else None
            answers = answers if isinstance(answers, list) else [] if answers is None else [answers]
            yield {
                "id": row["_id"],
                "question": row["text"],
                "relevant": relevant[row["_id"]],
                "references": [str(each) for each in answers],
            }
    if left:
        raise ConfigError(
            f"{where} is {str(folder)!r}: qrels/{split}.tsv speaks of query {min(left)!r}, and queries.jsonl has none "
            "such."
        )


def to_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of corpus.jsonl as a document."""
    return {"id": str(row["_id"]), "title": str(row.get("title") or ""), "text": row["text"]}


def no_answer(messages: Any) -> str:
    """Answer nothing: for those who look at retrieval alone."""
    return ""


def _read_qrels(folder: Path, split: str, where: str) -> dict[str, list[str]]:
    file = folder / "qrels" / f"{split}.tsv"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))) or "none"
        raise ConfigError(
            f"{where} is {str(folder)!r}, which has no split {split!r} in qrels/. There: {there}. Say dataset.split=..."
        )
    found: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("\t")
        if number == 1 and parts[-1:] == ["score"]:
            continue
        try:
            query, document, mark = parts
            if float(mark) > 0:
                found.setdefault(query, []).append(document)
        except ValueError:
            raise ConfigError(
                f"{file}, line {number}: {line!r}. Allowed: query-id, corpus-id and score, tabs between."
            ) from None
    if not found:
        raise ConfigError(f"{file} names no relevant document.")
    return found


def _read_line(line: str, file: Path, number: int, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return {**row, "_id": str(row["_id"]), "text": str(row["text"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{where}: {file}, line {number}: {type(error).__name__}: {error}. Allowed: an object with _id and text."
        ) from error
