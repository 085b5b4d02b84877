"""Serves the runs of a gang where all of them wait: one pass for those that ask for the same, all of it or nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rfflow.worker.gangs.calibration import Choice, Choices, now
from rfflow.worker.gangs.forms import MIXING
from rfflow.worker.gangs.member import AtBackward, AtForward, Meeting, Member, Reply
from rfflow.worker.gangs.passes import Call, Pass, in_order
from rfflow.worker.gangs.trunk import Trunk
from rfflow.worker.memory.memory import is_out_of_memory
from rfflow.worker.training.torch_settings import read_torch_settings, set_torch_settings

log = logging.getLogger(__name__)


@dataclass
class _Place:
    """A run in a pass."""

    run: int
    call: Call
    leaf: torch.Tensor | None = None
    """Its last hidden states, of which its own code computes the gradient."""


@dataclass(frozen=True)
class _Round:
    """From where all runs ask for the decoder to where they do so again."""

    choice: Choice
    is_fused: bool
    began: float
    tokens: int


@dataclass
class _Gone:
    """A pass that has gone forward."""

    places: Sequence[_Place]
    output: torch.Tensor


class Gang:
    """Some runs for the length of a chunk.

    Args:
        trunk: of the base model that they share.
        choices: what was found out of gangs; without them, all goes together.
        chosen: which of that holds for which runs; batches of theirs need not be of one size.
    """

    def __init__(
        self, trunk: Trunk, choices: Choices | None = None, chosen: dict[frozenset[int], Choice] | None = None
    ):
        self._trunk = trunk
        self._choices = choices
        self._chosen = {} if chosen is None else chosen
        self._round: _Round | None = None
        self.seconds: defaultdict[int, float] = defaultdict(float)
        """Each run's share of what passes have taken, by its tokens."""
        self._tokens: dict[int, int] = {}
        """Those of each run's last call."""
        self.refused: Choice | None = None
        """Why the runs would rather go one by one, once that is known."""
        self._members: dict[int, Member] = {}
        self._waiting: dict[int, Meeting] = {}
        self._gone: list[_Gone] = []
        """Passes whose backward half is to come."""
        self._most: int | None = None
        """The tokens of which a pass may keep something at once, where the memory was not enough for more."""
        self.passes = 0
        """How often several runs have gone forward together."""

    def add(self, run: int, member: Member) -> None:
        """Let a run be one of them."""
        self._members[run] = member
        member.join()

    def remove(self, run: int) -> None:
        """Let a run go that has come to its boundary, or has failed; the others go on as they would have."""
        member = self._members.pop(run, None)
        self._waiting.pop(run, None)
        if member is not None:
            member.leave()

    def __contains__(self, run: int) -> bool:
        return run in self._members

    def wait(self, run: int, meeting: Meeting) -> None:
        """Note that a run waits."""
        self._waiting[run] = meeting

    @property
    def is_over(self) -> bool:
        """Whether all have come to their boundaries."""
        return not self._members

    def disband(self) -> None:
        """Let all go, wherever they stand."""
        for run in list(self._members):
            self.remove(run)
        self._gone.clear()

    def disturb(self) -> None:
        """Somebody did something else in this round: it is not timed."""
        self._round = None

    @property
    def members(self) -> list[int]:
        """The runs that are in it."""
        return list(self._members)

    @property
    def ready(self) -> list[int]:
        """The runs that can go on."""
        return [run for run in self._members if run not in self._waiting]

    def serve(self) -> dict[int, Reply]:
        """Do what all wait for, and return what each of them goes on with that can."""
        forward = {run: at.call for run, at in self._waiting.items() if isinstance(at, AtForward)}
        self._tokens.update({run: call.tokens for run, call in forward.items()})
        began = time.perf_counter()
        forward = self._within(forward)
        # Who goes backward waits for all that go forward: so they stay in step, whatever they accumulate.
        if not forward:
            replies = self._backward()
        elif self._goes_together(forward):
            replies = self._forward(forward)
        else:
            replies = {run: Reply() for run in forward}
        self._share(time.perf_counter() - began, list(replies))
        for run in replies:
            del self._waiting[run]
        return replies

    def _within(self, calls: dict[int, Call]) -> dict[int, Call]:
        """Return the calls for which there is memory beside what waits for its way back; who waits longest is first."""
        if self._most is None:
            return calls
        gone = {place.run for one in self._gone for place in one.places}
        chosen = {run: call for run, call in calls.items() if run in gone}  # its way back is behind this one's
        tokens = sum(self._tokens[run] for run in gone)
        for run, call in calls.items():
            if run not in chosen and (not tokens or tokens + call.tokens <= self._most):
                chosen[run] = call
                tokens += call.tokens
        return chosen

    def _share(self, seconds: float, runs: Sequence[int]) -> None:
        tokens = sum(self._tokens.get(run, 0) for run in runs)
        for run in runs:
            self.seconds[run] += seconds * self._tokens.get(run, 0) / max(tokens, 1)

    def _goes_together(self, calls: Mapping[int, Call]) -> bool:
        """Whether calls are served by one pass; where all runs begin, time what has been and choose for what comes."""
        if self._choices is None:
            return True
        if len(calls) < len(self._members) or not all(call.needs_grad for call in calls.values()):
            return self._round is None or self._round.is_fused
        moment = now(next(iter(calls.values())).ids.device)
        if self._round is not None:
            self._round.choice.add(self._round.is_fused, moment - self._round.began, self._round.tokens)
            self._tell(self._round.choice)
        tokens = sum(call.tokens for call in calls.values())
        choice = self._chosen.setdefault(frozenset(calls), self._choices.of(id(self._trunk), len(calls), tokens))
        if choice.is_fused is False:
            self._tell(choice)
            self.refused = choice
        self._round = _Round(choice, choice.next(), moment, tokens)
        return self._round.is_fused

    def _tell(self, choice: Choice) -> None:
        if choice.is_fused is not None and not choice.is_told:
            choice.is_told = True
            log.info("engine.fusion=auto: %s", choice)

    @property
    def _to_verify(self) -> Choice | None:
        choice = None if self._round is None else self._round.choice
        return choice if choice is not None and choice.is_exact is None else None

    # --- forward ------------------------------------------------------------------------------------------------------

    def _forward(self, calls: Mapping[int, Call]) -> dict[int, Reply]:
        alike: defaultdict[Hashable, list[_Place]] = defaultdict(list)
        for run, call in calls.items():
            alike[call.kind].append(_Place(run, call))
        replies: dict[int, Reply] = {}
        for places in alike.values():
            order = in_order([place.call for place in places])
            self._through([places[index] for index in order], replies)
        return replies

    def _through(self, places: Sequence[_Place], replies: dict[int, Reply]) -> None:
        """Take some through together, halves of them where that cannot be, and who is left alone by himself.

        A half keeps its part of the memory until it has gone back. So where that is what lacks, the other half waits
        for it, without a reply.
        """
        if len(places) == 1:
            replies[places[0].run] = Reply()
            return
        current: Pass | None = None
        is_memory = False
        try:
            current, output = self._pass(places)
            is_exact = self._to_verify is None or self._is_exact_forward(current, output, places)
            parts = output.detach().split(current.sizes, dim=1)
            rows = zip(places, parts, strict=True)
            hidden = [part.reshape(*place.call.ids.shape, -1).clone() for place, part in rows]
        except Exception as error:
            log.info("A pass of %s runs is halved: %s", len(places), _first_line(error))
            current, is_memory = None, places[0].call.needs_grad and is_out_of_memory(error)
        # Behind the error, which holds what was computed.
        if current is None and is_memory and self._choices is not None:
            if self._round is not None:
                self._round.choice.refuse("there is no memory for all at once")
            replies.update({place.run: Reply() for place in places})
            return
        if current is None:
            half = len(places) // 2
            self._through(places[:half], replies)
            if is_memory:
                self._most = min(self._most or sys.maxsize, sum(place.call.tokens for place in places) // 2)
            else:
                self._through(places[half:], replies)
            return
        if self._to_verify is not None and not is_exact:
            self._to_verify.refuse(_INEXACT)
            replies.update({place.run: Reply() for place in places})
            return
        for place, states, generator in zip(places, hidden, current.generators, strict=True):
            if place.call.needs_grad:
                place.leaf = states.requires_grad_()
                replies[place.run] = Reply(states, generator.get_state())
            else:
                replies[place.run] = Reply(states)
        if places[0].call.needs_grad:
            self._gone.append(_Gone(places, output))

    def _pass(self, places: Sequence[_Place]) -> tuple[Pass, torch.Tensor]:
        current = Pass([place.call for place in places])
        with _as_set(places[0].call.settings):
            output = self._trunk.forward(current)
        self._check_numbers(places, [output.detach()])
        self.passes += 1
        return current, output

    def _check_numbers(self, places: Sequence[_Place], found: Sequence[torch.Tensor | None]) -> None:
        """Raise where a run may have spoilt the numbers of others, in a form in which that can be."""
        if self._trunk.form in MIXING and len(places) > 1 and not _are_numbers(found):
            raise ArithmeticError("something is no number, by which run it may be")

    def _is_exact_forward(self, current: Pass, output: torch.Tensor, places: Sequence[_Place]) -> bool:
        """Whether each run has what a pass of its own gives it, to the bit."""
        parts = output.detach().split(current.sizes, dim=1)
        return all(
            torch.equal(part, self._pass([place])[1].detach()) for part, place in zip(parts, places, strict=True)
        )

    # --- backward -----------------------------------------------------------------------------------------------------

    def _backward(self) -> dict[int, Reply]:
        settings = {run: at.settings for run, at in self._waiting.items() if isinstance(at, AtBackward)}
        replies = {run: Reply() for run in settings}
        gone, self._gone = self._gone, []
        while gone:
            one = gone.pop()
            if any(place.leaf is not None and place.leaf.grad is not None for place in one.places):
                self._back(one, settings, replies)
        return replies

    def _back(self, gone: _Gone, settings: Mapping[int, Any], replies: dict[int, Reply]) -> None:
        """Compute all gradients of a pass, or of halves of it, and only then add them."""
        places = gone.places
        try:
            self._add_gradients(gone, settings)
            return
        except Exception as error:
            left = [place for place in places if place.run in self._members]
            if len(places) == 1 and left:
                replies[left[0].run] = Reply(error=error)
            if len(places) == 1 or not left:
                return
            log.info("A backward pass of %s runs is halved: %s", len(places), _first_line(error))
        gone.output = torch.empty(0)  # its graph holds what there is no room for
        half = len(left) // 2
        for part in (left[:half], left[half:]):
            if part:
                self._again(part, settings, replies)

    def _again(self, places: Sequence[_Place], settings: Mapping[int, Any], replies: dict[int, Reply]) -> None:
        """Go forward once more with fewer, for the same bits, and back."""
        gone = None
        try:
            gone = _Gone(places, self._pass(places)[1])
        except Exception as error:
            if len(places) == 1:
                replies[places[0].run] = Reply(error=error)
                return
        if gone is not None:
            self._back(gone, settings, replies)
            return
        half = len(places) // 2
        for part in (places[:half], places[half:]):
            self._again(part, settings, replies)

    def _add_gradients(self, gone: _Gone, settings: Mapping[int, Any]) -> None:
        places = [place for place in gone.places if place.run in self._members]
        parameters = [one for place in places for one in self._members[place.run].parameters()]
        into = torch.cat([_gradient(place, gone.output) for place in gone.places])
        with _as_set(next((settings[place.run] for place in places if place.run in settings), {})):
            found: Sequence[torch.Tensor | None] = torch.autograd.grad(
                [gone.output], parameters, [into.view_as(gone.output)], allow_unused=True
            )
        if (choice := self._to_verify) is not None and len(places) > 1:
            found = self._verified(choice, gone, settings, parameters, found)
        self._check_numbers(places, found)
        _keep(parameters, found)

    def _verified(
        self,
        choice: Choice,
        gone: _Gone,
        settings: Mapping[int, Any],
        parameters: Sequence[torch.Tensor],
        found: Sequence[torch.Tensor | None],
    ) -> Sequence[torch.Tensor | None]:
        """Compute the gradients of each run alone as well; those are the ones that count."""
        alone: dict[int, torch.Tensor | None] = {}
        for place in gone.places:
            if place.run not in self._members:
                continue
            own = self._members[place.run].parameters()
            output = self._pass([place])[1]
            with _as_set(settings.get(place.run, {})):
                into = _gradient(place, output).view_as(output)
                alone |= zip(map(id, own), torch.autograd.grad([output], own, [into], allow_unused=True), strict=True)
        singly = [alone[id(parameter)] for parameter in parameters]
        choice.is_exact = all(_are_equal(one, other) for one, other in zip(found, singly, strict=True))
        if not choice.is_exact:
            choice.refuse(_INEXACT)
        self.disturb()
        return singly


_INEXACT = "a run would not have the bits that it has alone; engine.fusion=slice takes them together all the same"


def _are_equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _gradient(place: _Place, output: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a run's last hidden states: zeros where it has none, because it has failed."""
    if place.leaf is None or place.leaf.grad is None:
        return output.new_zeros((place.call.tokens, output.shape[-1]))
    return place.leaf.grad.reshape(-1, output.shape[-1])


def _are_numbers(tensors: Sequence[torch.Tensor | None]) -> bool:
    sums = [one.sum(dtype=torch.float32) for one in tensors if one is not None]
    return not sums or bool(torch.stack(sums).isfinite().all())


def _keep(parameters: Sequence[torch.Tensor], found: Sequence[torch.Tensor | None]) -> None:
    """Add gradients to those that are there: all of them, or none where one cannot be added."""
    before = [parameter.grad for parameter in parameters]
    laid_out = [None if new is None else _as(one, new) for one, new in zip(parameters, found, strict=True)]
    sums = [old if new is None else _sum(old, new) for old, new in zip(before, laid_out, strict=True)]
    try:
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient
    except BaseException:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        raise


def _as(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient that lies in memory as its parameter does, which fused optimizers take for granted."""
    if gradient.stride() == parameter.stride() and gradient._base is None:
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _sum(old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return new if old is None else old + new


@contextlib.contextmanager
def _as_set(settings: Mapping[str, Any]) -> Iterator[None]:
    """Compute as a run has torch compute."""
    before = read_torch_settings()
    wanted = {**before, **settings}
    set_torch_settings(wanted, before)
    try:
        yield
    finally:
        set_torch_settings(before, wanted)
        torch.clear_autocast_cache()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
