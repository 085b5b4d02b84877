"""How long candidates take that ask one server: by rfflow, where they take their shards together, and by a plain loop.

    python benchmarks/together.py [rounds]          # three minutes a round; prints the table of the README

The server is the stand-in of `recipe=api` on loopback, which takes a second for an answer and refuses nothing. Each
candidate asks 64 questions, eight at a time, in four shards. The loop is what one writes first: the official client,
eight at a time, one candidate after the other. Told is the time from the first request to the last answer: what lies
before (imports, configurations) is left out.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recipes.api.server import Server

COUNTS = (1, 2, 4, 8)
QUESTIONS, PLACES, LATENCY = 64, 8, 1.0


class Counting(Server):
    """Knows how many requests have come."""

    def __init__(self) -> None:
        super().__init__(latency=LATENCY, refuse_every=0)
        self.requests = 0

    def is_refused(self) -> bool:
        """Count a request."""
        with self._lock:
            self.requests += 1
        return False


def by_rfflow(server: Counting, count: int, folder: Path) -> float:
    """Return the seconds from the first shard's beginning to the last one's end."""
    rows = [json.dumps({"question": f"{n} and 3. How many?", "reference": str(n + 3)}) for n in range(QUESTIONS)]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    words = ["+recipe=api", "--multirun", "generator.model=small", f"generator.base_url={server.address}"]
    words += [f"generator.seed={','.join(map(str, range(count)))}", f"generator.concurrency={PLACES}", "chunks=4"]
    words += ["dataset=questions", "dataset.path=questions.jsonl", "prompt=question", "hydra.sweep.dir=out"]
    subprocess.run([sys.executable, "-m", "rfflow", *words], cwd=folder, check=True, capture_output=True)
    chunks = json.loads((folder / "out" / "timeline.json").read_text())["chunks"]
    return float(max(chunk["ended"] for chunk in chunks) - min(chunk["started"] for chunk in chunks))


async def by_loop(server: Counting, count: int) -> float:
    """Return the seconds of a script."""
    import openai

    async def answer_all(seed: int) -> None:
        places = asyncio.Semaphore(PLACES)
        async with openai.AsyncOpenAI(base_url=server.address, api_key="none") as client:

            async def ask(number: int) -> None:
                messages = [{"role": "user", "content": f"{number} and 3. How many?"}]
                async with places:
                    await client.chat.completions.create(model="small", messages=messages, seed=seed)

            await asyncio.gather(*map(ask, range(QUESTIONS)))

    began = time.monotonic()
    for seed in range(count):
        await answer_all(seed)
    return time.monotonic() - began


def measure(count: int) -> tuple[float, int, float, int]:
    """Return seconds and requests of both."""
    found: list[float] = []
    for side in ("rfflow", "loop"):
        server = Counting()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with tempfile.TemporaryDirectory() as folder:
            seconds = (
                by_rfflow(server, count, Path(folder)) if side == "rfflow" else asyncio.run(by_loop(server, count))
            )
        server.shutdown()
        server.server_close()
        found += [seconds, server.requests]
    return found[0], int(found[1]), found[2], int(found[3])


def main(rounds: int) -> None:
    print("| candidates | rfflow | a plain loop | no faster than | requests of both |\n|--:|--:|--:|--:|--:|")
    for count in COUNTS:
        measured = [measure(count) for _ in range(rounds)]
        ours, loops = ([each[place] for each in measured] for place in (0, 2))
        cells = [f"{statistics.median(one):.1f} s ({min(one):.1f}-{max(one):.1f})" for one in (ours, loops)]
        least = QUESTIONS / PLACES * LATENCY
        requests = " / ".join(str(measured[0][place]) for place in (1, 3))
        print(f"| {count} | {cells[0]} | {cells[1]} | {least:.1f} s; {count * least:.1f} s | {requests} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
