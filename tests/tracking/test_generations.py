"""generations.jsonl and arguments.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rfflow.engine.restoring import rewind_log
from rfflow.runs.chunks import Answer, ChunkResult
from rfflow.tracking.arguments import ArgumentsFile, read_arguments
from rfflow.tracking.generations import GenerationsLog
from rfflow.worker.training.described import described
from tests.tracking.story import Story, make_experiment


def test_answers_of_the_same_rows_can_be_put_side_by_side(tmp_path: Path) -> None:
    """And what a process wrote that died before its checkpoint is taken back."""
    experiment = make_experiment(tmp_path, (), ())
    story = Story(experiment, GenerationsLog())
    story.begin()
    result = ChunkResult(0, 0, 2, {}, 10.0, 12.0, answers=(Answer("1+1?", "3", "2"), Answer("ü\n", "", "")))
    for run in experiment.runs:
        for chunk in (0, 1):
            told = replace(result, run=run.number, chunk=chunk, step=2 + 2 * chunk)
            story.call("on_chunk_end", run=run, result=told)
    story.call("on_chunk_end", run=experiment.runs[0], result=ChunkResult(0, 2, 6, {}, 0, 0))
    first, second = ([json.loads(line) for line in run.paths.generations.open()] for run in experiment.runs)
    assert first == second and [(line["chunk"], line["row"]) for line in first] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert first[1] == {"time": 12.0, "step": 2, "chunk": 1, "row": 1, "prompt": "ü\n", "answer": "", "reference": ""}
    kept = rewind_log(experiment.runs[0].paths.generations, 2)
    assert kept is not None and len(kept) == 2


@dataclass
class Settings:
    """What a user's configuration class may look like."""

    rate: float = field(default=1e-3, metadata={"help": "How\n    fast."})
    kind: Literal["slow", "fast"] | None = "slow"
    path: Path | None = None
    names: list[str] = field(default_factory=list)
    limit: float = float("inf")


def test_arguments_are_known_without_their_class(tmp_path: Path) -> None:
    """Names, types and help; what an earlier process has written of other classes stays."""
    ArgumentsFile(tmp_path / "arguments.json").write({"a.Before": {}})
    file = ArgumentsFile(tmp_path / "arguments.json")
    file.write({"b.Settings": described(Settings)})
    found = read_arguments(tmp_path / "arguments.json")
    assert [*found] == ["a.Before", "b.Settings"]
    expected = {"type": "float", "takes": ["float"], "choices": [], "default": 0.001, "help": "How fast."}
    assert found["b.Settings"]["rate"] == expected
    assert (
        found["b.Settings"]["kind"]["choices"] == ["fast", "slow"] and found["b.Settings"]["limit"]["default"] == "inf"
    )
    assert found["b.Settings"]["path"]["takes"] == [] and found["b.Settings"]["names"]["type"] == "list[str]"
    assert read_arguments(tmp_path / "nothing.json") == {}
