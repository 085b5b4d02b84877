"""An evaluation as the engine handles it: it answers a shard of the questions, and pauses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rfflow.config.spec import EvalSpec
from rfflow.errors import ConfigError, OpError, RunFailed
from rfflow.evals.estimates import metric_names
from rfflow.evals.items import Item, ItemsFile, Score, read_items
from rfflow.evals.questions import shards
from rfflow.evals.scoring import Metrics
from rfflow.runs.chunks import Answer, ChunkPlan
from rfflow.runs.events import Boundary, ExpectedMetrics, Finished, Pause, Progress, Ready, WarmStart
from rfflow.runs.forecast import Forecast
from rfflow.runs.run import RunCard
from rfflow.worker.evaluation.judges import Judging
from rfflow.worker.evaluation.pieces import Pieces, make_pieces, wants_base
from rfflow.worker.evaluation.replies import Concurrent, Replies, Reply, forecast_of
from rfflow.worker.memory.offload import RunTensors
from rfflow.worker.shared import Shared
from rfflow.worker.training.context import RunContext

_SHOWN = 4
"""Answers that go to TensorBoard at a boundary."""


class EvaluationSession:
    """One run on its way through the questions."""

    def __init__(self, run: RunCard, shared: Shared, *, capture_output: bool = True, hydra: Any = None):
        assert isinstance(run.spec, EvalSpec), "what trains has a session of another kind"
        self.run = run
        self._spec = run.spec
        self.context = RunContext(shared.fabric.device, run.paths.log, capture_output=capture_output, hydra=hydra)
        self.holdings: RunTensors | None = None
        self._shared = shared
        self._pieces: Pieces | None = None
        self._metrics: Metrics | None = None
        self._file = ItemsFile(run.paths.items)
        self._items: dict[int, Item] = {}
        """What is answered, by position."""
        self._ends: tuple[int, ...] = ()
        self._done = 0
        """Where the last shard that is over ends."""
        self._asking: Replies | None = None
        """Who is asked now, the generator or a judge; nobody between two shards, and where there was hurry."""
        self._is_hurried = False

    def prepare(
        self,
        warm_start: WarmStart | None = None,
        checkpoint: Path | None = None,
        *,
        step: int = 0,
        is_at_boundary: bool = False,
    ) -> Ready:
        """Make everything ready for the first question; what was answered by an earlier process is not asked again.

        Raises:
            ConfigError: if the run cannot be made, naming it.
            OpError: for a warm start that cannot be.
        """
        spec = self._spec
        try:
            with self.context.active():
                self._pieces = self.context.variables.run(make_pieces, spec, self._shared)
                self._metrics = Metrics(spec.evaluation.metrics, self._pieces.questions)
                if warm_start is not None:
                    self.load_weights(warm_start)
            self._ends = shards(len(self._pieces.questions), spec.chunks)
        except (ConfigError, RunFailed) as error:
            raise ConfigError(f"{self.run.called}: {error}") from error
        finally:
            self._shared.bases.part_tokenizers()
        # All of a shard may be answered and not judged: it is not over then.
        self._done = max((end for end in self._ends if end < step or (end == step and is_at_boundary)), default=0)
        self._items = {position: item for position, item in read_items(self.run.paths.items).items() if self._is(item)}
        if callable(remember := getattr(self._pieces.generator, "remember", None)):
            remember([self._pieces.asked[position] for position in self._items])
        self.holdings = RunTensors(self._shared.fabric, list, self.run.paths.root / ".suspended.safetensors")
        names = metric_names(list(spec.evaluation.metrics))
        offered = frozenset(name for name in names if not name.endswith(("_low", "_high")))
        expected = ExpectedMetrics(names, True, True, True, offered)
        return Ready(ChunkPlan(self._ends, spec.chunks), expected, forecast=self._forecast(self._pieces))

    def begin(self, ring: Callable[[], None]) -> None:
        """Ask for the next shard and wait for nothing: :meth:`advance` takes what has come.

        Args:
            ring: called whenever :attr:`has_news` may have become true, from another thread.
        """
        assert self._pieces is not None, "prepare() comes first"
        for replies in self._all_replies():
            if isinstance(replies, Concurrent):
                replies.ring = ring
        with self.context.active():
            self.context.variables.run(self._ask, self._pieces)

    @property
    def has_news(self) -> bool:
        """Whether :meth:`advance` has something to take, and waits for nobody else."""
        return self._asking is None or self._asking.has_news

    def advance(self) -> Pause:
        """Answer until some answers have come, or the shard is through."""
        assert self._pieces is not None, "prepare() comes first"
        with self.context.active():
            return self.context.variables.run(self._answer, self._pieces)

    def load_weights(self, warm_start: WarmStart) -> None:
        """Answer with the weights of a run that is trained: those of its last boundary.

        Raises:
            OpError: if what answers has no place for them.
        """
        take = None if self._pieces is None else getattr(self._pieces.generator, "take_weights", None)
        if take is None or self._spec.peft is None:
            raise OpError(
                "an evaluation answers with its parent's weights only by generator=transformers, and with the parent's "
                "peft section. Clone it without warm_start, or leave peft as it is."
            )
        take(self._spec.peft, self._shared.fabric.load(warm_start.weights)["weights"], warm_start.parent)

    def keep_weights(self) -> None:
        """There are none."""

    def hurry(self) -> None:
        """Ask nothing any more, and pause when what was asked is answered."""
        self._is_hurried = True
        for replies in self._all_replies():
            replies.hurry()

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """The answers are the resume point: see to it that they are on the disk."""
        return self._file.sync

    def close(self) -> None:
        """Let go of the generator and the file."""
        is_through = bool(self._ends) and self._done == self._ends[-1]
        for replies in self._all_replies():
            replies.close()
        self._pieces = None
        self._file.close()
        if self.holdings is not None:
            self.holdings.forget()
        self.context.close("FINISHED" if is_through else "KILLED")

    # --- a shard ------------------------------------------------------------------------------------------------------

    def _ask(self, pieces: Pieces) -> None:
        """Ask what the shard wants next, unless somebody is asked already, or there is hurry."""
        if self._asking is not None or self._is_hurried:
            return
        places = range(self._done, self._end)
        if open := {place: pieces.asked[place] for place in places if place not in self._items}:
            self._asking = pieces.replies
            pieces.replies.begin(open, functools.partial(self._put, pieces))
            return
        for judging in pieces.judges:
            if unjudged := {place: self._items[place] for place in places if not self._is_judged(place, judging)}:
                self._asking = judging.replies
                judging.begin(pieces.questions, unjudged, self._keep)
                return

    def _answer(self, pieces: Pieces) -> Pause:
        self._ask(pieces)
        asking, places = self._asking, range(self._done, self._end)
        count = 0 if asking is None else asking.next()
        there = sum(place in self._items for place in places)
        if there == len(places) and all(self._is_judged(place, each) for place in places for each in pieces.judges):
            return self._come_to(pieces, self._end)
        paused = None if asking is None else asking.paused
        if not count:  # all that was asked is back
            is_left, self._asking, self._is_hurried = self._is_hurried or paused, None, False
            if not is_left:
                self._ask(pieces)  # a judge; what he says is waited for next time
        can_checkpoint = self._asking is None or self._asking.is_idle
        return Progress(self._done + there, (), can_checkpoint=can_checkpoint, paused=paused)

    def _come_to(self, pieces: Pieces, end: int) -> Boundary:
        self._done, self._asking = end, None
        self._check_base()
        kind = Finished if end == self._ends[-1] else Boundary
        return kind(end, (), {}, answers=self._shown(pieces, end))

    @property
    def _end(self) -> int:
        """Where the next shard ends."""
        return next(end for end in self._ends if end > self._done)

    def _is_judged(self, place: int, judging: Judging) -> bool:
        return place in self._items and judging.name in self._items[place].scores

    def _all_replies(self) -> list[Replies]:
        if self._pieces is None:
            return []
        return [self._pieces.replies, *(each.replies for each in self._pieces.judges)]

    def _forecast(self, pieces: Pieces) -> Forecast:
        """Return what is still to be asked of servers."""
        places = range(len(pieces.questions))
        open = [pieces.asked[place] for place in places if place not in self._items]
        found = forecast_of(pieces.generator, open)
        for judging in pieces.judges:
            unjudged = [
                place for place in places if place not in self._items or judging.name not in self._items[place].scores
            ]
            found += judging.forecast(pieces.questions, unjudged)
        return found

    def _check_base(self) -> None:
        """Look whether a generator has changed what it shares with other runs."""
        spec = self._spec
        if wants_base(spec.evaluation):
            self._shared.bases.get(spec.model).check_untouched(f"Run {self.run.number}")

    def _put(self, pieces: Pieces, position: int, reply: Reply) -> None:
        """Score an answer, and write it down before anything else happens."""
        assert self._metrics is not None
        question, found = pieces.questions[position], pieces.found[position]
        found = found if reply.found is None else reply.found
        scores: dict[str, Score] = {}
        trouble = reply.error
        if reply.text is not None:
            k, took = self._spec.evaluation.k, (reply.usage, reply.latency, reply.cost)
            scores, trouble = self._metrics(question, reply.text, found, k, *took)
        else:
            scores = dict.fromkeys(self._spec.evaluation.metrics)
        item = Item(
            position=position,
            id=question.id,
            prompt=pieces.hashes[position],
            answer=reply.text,
            found=found,
            scores=scores,
            usage=reply.usage,
            latency=round(reply.latency, 4),
            cost=reply.cost,
            paid={"generator": reply.cost} if reply.cost else {},
            error=trouble,
            is_kept=reply.is_kept,
        )
        self._keep(item)

    def _keep(self, item: Item) -> None:
        self._file.put(item)
        self._items[item.position] = item

    def _is(self, item: Item) -> bool:
        """Whether an item of an earlier process stands; one without an answer is asked once more."""
        assert self._pieces is not None
        if not 0 <= item.position < len(self._pieces.questions):
            return False
        is_same = item.prompt == self._pieces.hashes[item.position]
        return is_same and (item.answer is not None or item.position < self._done)

    def _shown(self, pieces: Pieces, end: int) -> tuple[Answer, ...]:
        first = self._ends[self._ends.index(end) - 1] if end != self._ends[0] else 0
        places = range(first, min(end, first + _SHOWN))
        return tuple(
            Answer(
                pieces.questions[place].text,
                self._items[place].answer or f"(none: {self._items[place].error})",
                " | ".join(pieces.questions[place].references),
            )
            for place in places
        )
