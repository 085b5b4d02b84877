"""What `policy=race` saves and loses beside halving and median, on the same answers of made candidates.

    python benchmarks/racing.py [repeats]          # a few minutes with 100; prints the table of the README

Candidates answer questions that are equally hard for all (item response theory), so that their scores go together as
real ones do. Each repetition makes answers anew and permutes the questions; every policy sees the same. They steer by
`rfflow.policies.simulation`, eight shards to a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.coverage import looks_of, matrix
from benchmarks.early_stopping import Rounds
from rfflow.config.spec import Objective
from rfflow.evals.comparison import Candidate
from rfflow.evals.estimates import shares
from rfflow.policies import Halving, Median, Policy, Race
from rfflow.policies.simulation import Curve, simulate

OBJECTIVE = Objective("eval_m", "maximize")
NEAR = 0.01
"""So little less than the best is as good."""
POLICIES: dict[str, Callable[[], Policy]] = {
    "race": Race,
    "race, margin .02": lambda: Race(margin=0.02),
    "halving": Halving,
    "median": Median,
}


def answers(candidates: int, size: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Scores of candidates (rows): right or wrong; or F1, which of half of the wrong ones is something in between."""
    right = matrix(candidates, size, rng)
    if kind == "binary":
        return right
    between = np.where(rng.random(right.shape) < 0.5, 0.0, rng.beta(2, 3, right.shape))
    return np.where(right == 1, 1.0, between)


def curves_of(scores: np.ndarray) -> list[Curve]:
    """Return what simulated runs come to, of scores in the order of the questions."""
    count, size = scores.shape
    looks, parts = looks_of(size), shares(dict.fromkeys(range(count)))
    found = []
    for number, own in enumerate(scores):
        metrics = [{"eval_m": float(own[:end].mean())} for end in looks]
        candidate = Candidate(number, own.tolist(), looks, (0.0, 1.0), share=parts[number])
        found.append(Curve(number, metrics, candidate=candidate))
    return found


def play(scores: np.ndarray, policy: Policy) -> tuple[bool, bool, float]:
    """Return whether the best is kept, whether what is chosen is as good, and the share of the calls that were made."""
    count, size = scores.shape
    truth, outcome = scores.mean(1), simulate(curves_of(scores), Rounds(policy), OBJECTIVE)
    looks = (0, *looks_of(size))
    calls = sum(looks[run.chunk] for run in outcome.scene.runs)
    chosen = outcome.chosen
    assert chosen is not None
    through = {run.number for run in outcome.scene.runs if run.state == "completed"}
    best = {number for number in range(count) if truth[number] == truth.max()}
    return bool(best & through), truth.max() - truth[chosen.number] <= NEAR, calls / (count * size)


def main(repeats: int) -> None:
    print("| candidates, questions, scores | " + " | ".join(POLICIES) + " |\n|---|" + "---|" * len(POLICIES))
    for size in (256, 1000):
        for count in (8, 16, 64):
            for kind in ("binary", "F1"):
                cells = []
                for make in POLICIES.values():
                    rng, played = np.random.default_rng([size, count]), []
                    for _ in range(max(1, repeats if count < 64 else repeats // 2)):
                        scores = answers(count, size, kind, rng)
                        played.append(play(scores[:, rng.permutation(size)], make()))
                    kept, near, share = np.array(played, float).mean(0)
                    cells.append(f"{kept:.2f} / {near:.2f} / {share:.2f}")
                print(f"| {count}, {size}, {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
