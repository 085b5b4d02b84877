"""What stopping runs early saves, and what it costs, on learning curves whose ends are known.

    python benchmarks/early_stopping.py                    # print the tables (some minutes on one core)
    python benchmarks/early_stopping.py --write            # and put them into docs/early_stopping.md

Every policy steers the same curves through rfflow's own scheduler, a chunk at a time; nothing is trained. Curves are
drawn from a seed: loss(t) = floor + height * t**-rate + noise after t chunks.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).parent.parent))

from rfflow.policies import Decision, Halving, Hyperband, Median, Policy, Rules, Scene
from rfflow.policies.simulation import Curve, Outcome, simulate

CHUNKS = 16
SIZES = (16, 64, 256)
SEEDS = 20
TOLERANCES = (0.01, 0.1)
"""How much worse than the best loss at the end is still comparable."""
PAGE = Path(__file__).parent.parent / "docs" / "early_stopping.md"
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"


class Rounds:
    """Ask a policy once a round, when all who go on have done the same number of chunks.

    That is the only moment at which these policies decide, and 256 runs need not be looked at after every chunk.
    """

    def __init__(self, policy: Policy):
        self.policy = policy

    def decide(self, scene: Scene) -> Sequence[Decision]:
        """Ask, if nobody is behind: runs go on in the order of their numbers."""
        first = next((run for run in scene.runs if run.is_live), None)
        last = next((run for run in reversed(scene.runs) if run.is_live), None)
        if first is not None and last is not None and first.chunk != last.chunk:
            return []
        return self.policy.decide(scene)


class Nobody:
    """Train all to the end."""

    def decide(self, scene: Scene) -> list[Decision]:
        return []


RULES = [
    {"name": "sick", "when": "is_nan(loss) or loss > 3 * best.loss", "do": "delete"},
    {"name": "weak", "at_chunk": 2, "select": {"worst": "50%"}, "do": "stop"},
    {"name": "weaker", "at_chunk": 8, "select": {"worst": "50%"}, "do": "stop"},
]
POLICIES: dict[str, Callable[[], Policy]] = {
    "none (grid)": Nobody,
    "halving eta=2": lambda: Halving(2),
    "halving eta=4": lambda: Halving(4),
    "halving eta=2 min_chunks=4": lambda: Halving(2, 4),
    "hyperband eta=2": lambda: Hyperband(2),
    "median": Median,
    "rules (50% at 2 and 8)": lambda: Rules(RULES),
}


# --- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """One configuration's curve, without noise."""

    floor: float
    height: float
    rate: float
    diverges_at: int = CHUNKS + 1

    def loss(self, chunk: int) -> float:
        """Return the loss after so many chunks (from 1)."""
        return float("nan") if chunk >= self.diverges_at else self.floor + self.height * chunk**-self.rate


def alike(draw: random.Random) -> Law:
    """Curves of one shape: who is ahead stays ahead, but for the noise."""
    return Law(draw.uniform(1.0, 2.0), 1.5, 0.7)


def mixed(draw: random.Random) -> Law:
    """Floor, height and rate know nothing of each other; one in ten diverges."""
    diverges = draw.randrange(1, CHUNKS + 1) if draw.random() < 0.1 else CHUNKS + 1
    return Law(draw.uniform(1.0, 2.0), draw.uniform(0.5, 2.5), draw.uniform(0.3, 1.2), diverges)


def crossing(draw: random.Random) -> Law:
    """The hard case: who starts quickly ends high, so the last after a chunk are the first at the end."""
    late = draw.random()
    return Law(2.0 - late, 0.5 + 3.0 * late, 0.9 + draw.uniform(-0.1, 0.1))


FAMILIES = {"alike": alike, "mixed": mixed, "crossing": crossing}
NOISE = 0.02


def draw_curves(family: str, size: int, seed: int) -> tuple[list[Law], list[Curve]]:
    """Return laws, and the curves that a policy sees."""
    draw = random.Random(f"{family} {size} {seed}")
    laws = [FAMILIES[family](draw) for _ in range(size)]
    curves = []
    for number, law in enumerate(laws):
        losses = [law.loss(chunk) + draw.gauss(0, NOISE) for chunk in range(1, CHUNKS + 1)]
        curves.append(Curve(number, tuple({"loss": loss, "eval_loss": loss} for loss in losses)))
    return laws, curves


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of one policy on one draw."""

    spent: float
    """Chunk-units trained, as a share of training all to the end."""
    regret: float
    """True loss of the chosen run, over the best true loss at the end, in units of the median run's: 0 is the best
    configuration, 1 is one taken from the middle."""
    whole: tuple[float, ...]
    """Chunk-units of training all, over those until some run shows a loss comparable to the best of all, by tolerance;
    0 where none does."""
    fair: tuple[float, ...]
    """The same, but one run after the other may stop, too, as soon as it shows such a loss."""


def measure(laws: Sequence[Law], curves: Sequence[Curve], outcome: Outcome) -> Figures:
    """Return the figures."""
    ends = sorted(law.loss(CHUNKS) for law in laws if law.diverges_at > CHUNKS)
    chosen = outcome.chosen
    assert chosen is not None
    loss = laws[chosen.number].loss(chosen.chunk)
    regret = (loss - ends[0]) / (median(ends) - ends[0])
    best = min(c.metrics[-1]["loss"] for c in curves if c.metrics[-1]["loss"] == c.metrics[-1]["loss"])
    one_by_one = [(curve.number, chunk) for curve in curves for chunk in range(CHUNKS)]
    whole, fair = [], []
    for tolerance in TOLERANCES:
        before = reaches(curves, one_by_one, best * (1 + tolerance))
        after = reaches(curves, outcome.order, best * (1 + tolerance))
        assert before is not None
        whole.append(len(one_by_one) / after if after else 0.0)
        fair.append(before / after if after else 0.0)
    return Figures(outcome.spent / len(one_by_one), regret, tuple(whole), tuple(fair))


def reaches(curves: Sequence[Curve], order: Sequence[tuple[int, int]], goal: float, metric: str = "loss") -> int | None:
    """Return after how many chunk-units some run has shown a loss as good as the goal."""
    for spent, (run, chunk) in enumerate(order, 1):
        if curves[run].metrics[chunk][metric] <= goal:
            return spent
    return None


def run_all(sizes: Sequence[int], seeds: int) -> dict[tuple[str, int, str], list[Figures]]:
    """Measure every policy on every draw."""
    figures: dict[tuple[str, int, str], list[Figures]] = {}
    for family in FAMILIES:
        for size in sizes:
            for seed in range(seeds):
                laws, curves = draw_curves(family, size, seed)
                for name, make in POLICIES.items():
                    outcome = simulate(curves, Rounds(make()))
                    figures.setdefault((family, size, name), []).append(measure(laws, curves, outcome))
            print(f"{family} {size}", file=sys.stderr, flush=True)
    return figures


# --- what is printed --------------------------------------------------------------------------------------------------


def tables(figures: dict[tuple[str, int, str], list[Figures]], sizes: Sequence[int]) -> str:
    """Return a Markdown table a family: medians, and in brackets the middle 80 % of the seeds."""
    lines = []
    for family, law in FAMILIES.items():
        assert law.__doc__ is not None
        lines += ["", f"### {family}", "", law.__doc__.strip(), ""]
        lines += ["| policy | configurations | chunks spent | regret |", "|---|--:|--:|--:|"]
        for name in POLICIES:
            for size in sizes:
                cells = figures[family, size, name]
                spent = spread([100 * cell.spent for cell in cells], "{:.0f}", " %")
                lines.append(f"| {name} | {size} | {spent} | {spread([cell.regret for cell in cells], '{:.2f}')} |")
    lines += ["", "### Time to a comparable best loss", ""]
    heads = [f"{kind} {100 * tolerance:.0f} %" for kind in ("all /", "until /") for tolerance in TOLERANCES]
    lines += [f"| curves | policy | configurations | {' | '.join(heads)} |", "|---|---|--:" + "|--:" * len(heads) + "|"]
    for family in FAMILIES:
        for name in POLICIES:
            for size in sizes:
                cells = figures[family, size, name]
                columns = [*zip(*(cell.whole for cell in cells), strict=True)]
                columns += [*zip(*(cell.fair for cell in cells), strict=True)]
                texts = [reached(list(column)) for column in columns]
                lines.append(f"| {family} | {name} | {size} | {' | '.join(texts)} |")
    return "\n".join(lines[1:])


def reached(values: Sequence[float]) -> str:
    """Write how many times as fast; 0 is never."""
    missed = sum(value == 0 for value in values)
    return spread(values, "{:.1f}", "x") + (f"; {missed}/{len(values)} never" if missed else "")


def spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """Write the median, and in brackets the middle 80 %."""
    if len(values) < 2:
        return form.format(values[0]) + unit
    deciles = quantiles(values, n=10, method="inclusive")
    low, high = form.format(deciles[0]), form.format(deciles[-1])
    middle = form.format(median(values)) + unit
    return middle if low == high else f"{middle} ({low}-{high})"


def put_between(begin: str, end: str, text: str) -> None:
    """Put a text into the page, in the place of what stands between two marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(word) for word in text.split(",")], default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.parent.name}/{PAGE.name}")
    args = parser.parse_args()
    text = tables(run_all(args.sizes, args.seeds), args.sizes)
    print(text)
    if args.write:
        put_between(BEGIN, END, text)


if __name__ == "__main__":
    main()
