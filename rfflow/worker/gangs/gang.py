"""Serves the runs of a gang where all of them wait: one pass for those that ask for the same, all of it or nothing."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rfflow.worker.gangs.member import AtBackward, AtForward, Meeting, Member, Reply
from rfflow.worker.gangs.passes import Call, Pass, in_order
from rfflow.worker.gangs.trunk import Trunk
from rfflow.worker.training.torch_settings import read_torch_settings, set_torch_settings

log = logging.getLogger(__name__)


@dataclass
class _Place:
    """A run in a pass."""

    run: int
    call: Call
    leaf: torch.Tensor | None = None
    """Its last hidden states, of which its own code computes the gradient."""


@dataclass
class _Gone:
    """A pass that has gone forward."""

    places: Sequence[_Place]
    output: torch.Tensor


class Gang:
    """Some runs for the length of a chunk.

    Args:
        trunk: of the base model that they share.
    """

    def __init__(self, trunk: Trunk):
        self._trunk = trunk
        self._members: dict[int, Member] = {}
        self._waiting: dict[int, Meeting] = {}
        self._gone: list[_Gone] = []
        """Passes whose backward half is to come."""
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

    @property
    def ready(self) -> list[int]:
        """The runs that can go on."""
        return [run for run in self._members if run not in self._waiting]

    def serve(self) -> dict[int, Reply]:
        """Do what all wait for, and return what each of them goes on with that can."""
        forward = {run: at.call for run, at in self._waiting.items() if isinstance(at, AtForward)}
        # Who goes backward waits for all that go forward: so they stay in step, whatever they accumulate.
        replies = self._forward(forward) if forward else self._backward()
        for run in replies:
            del self._waiting[run]
        return replies

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
        """Take some through together, halves of them where that cannot be, and who is left alone by himself."""
        if len(places) == 1:
            replies[places[0].run] = Reply()
            return
        try:
            current, output = self._pass(places)
        except Exception as error:
            log.info("A pass of %s runs is halved: %s", len(places), _first_line(error))
            half = len(places) // 2
            self._through(places[:half], replies)
            self._through(places[half:], replies)
            return
        parts = output.detach().split(current.sizes, dim=1)
        for place, part, generator in zip(places, parts, current.generators, strict=True):
            hidden = part.reshape(*place.call.ids.shape, -1).clone()
            if place.call.needs_grad:
                place.leaf = hidden.requires_grad_()
                replies[place.run] = Reply(hidden, generator.get_state())
            else:
                replies[place.run] = Reply(hidden)
        if places[0].call.needs_grad:
            self._gone.append(_Gone(places, output))

    def _pass(self, places: Sequence[_Place]) -> tuple[Pass, torch.Tensor]:
        current = Pass([place.call for place in places])
        with _as_set(places[0].call.settings):
            output = self._trunk.forward(current)
        self.passes += 1
        return current, output

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
            if len(places) == 1:
                replies[places[0].run] = Reply(error=error)
                return
            log.info("A backward pass of %s runs is halved: %s", len(places), _first_line(error))
        gone.output = torch.empty(0)  # its graph holds what there is no room for
        half = len(places) // 2
        for part in (places[:half], places[half:]):
            self._again(part, settings, replies)

    def _again(self, places: Sequence[_Place], settings: Mapping[int, Any], replies: dict[int, Reply]) -> None:
        """Go forward once more with fewer, for the same bits, and back."""
        try:
            gone = _Gone(places, self._pass(places)[1])
        except Exception as error:
            if len(places) == 1:
                replies[places[0].run] = Reply(error=error)
                return
            half = len(places) // 2
            for part in (places[:half], places[half:]):
                self._again(part, settings, replies)
            return
        self._back(gone, settings, replies)

    def _add_gradients(self, gone: _Gone, settings: Mapping[int, Any]) -> None:
        places = [place for place in gone.places if place.run in self._members]
        parameters = [one for place in places for one in self._members[place.run].parameters()]
        into = torch.cat([_gradient(place, gone.output) for place in gone.places])
        with _as_set(next((settings[place.run] for place in places if place.run in settings), {})):
            found: Sequence[torch.Tensor | None] = torch.autograd.grad(
                [gone.output], parameters, [into.view_as(gone.output)], allow_unused=True
            )
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient


def _gradient(place: _Place, output: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a run's last hidden states: zeros where it has none, because it has failed."""
    if place.leaf is None or place.leaf.grad is None:
        return output.new_zeros((place.call.tokens, output.shape[-1]))
    return place.leaf.grad.reshape(-1, output.shape[-1])


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
