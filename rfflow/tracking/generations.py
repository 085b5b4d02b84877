"""What runs answered, as lines of JSON in their own directories."""

from __future__ import annotations

import json

from rfflow.runs.chunks import ChunkResult
from rfflow.runs.experiment import Experiment
from rfflow.runs.run import Run


class GenerationsLog:
    """Append what a run answers at a chunk's end to its ``generations.jsonl``, where ``evaluation.generate`` asks.

    A line is ``{"time": seconds since the epoch, "step": optimizer steps done, "chunk": which chunk of the run, from 1,
    "row": which of the answers that are shown, from 0, "prompt": ..., "answer": ..., "reference": what the data says,
    empty where it says nothing}``. Runs with the same data answer the same rows.
    """

    def on_chunk_end(self, experiment: Experiment, run: Run, result: ChunkResult) -> None:
        """Append a line for each answer."""
        if not result.answers:
            return
        where = {"time": round(result.ended, 3), "step": result.step, "chunk": result.chunk + 1}
        lines = [
            where | {"row": row, "prompt": answer.prompt, "answer": answer.answer, "reference": answer.reference}
            for row, answer in enumerate(result.answers)
        ]
        run.paths.generations.parent.mkdir(parents=True, exist_ok=True)
        with run.paths.generations.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
