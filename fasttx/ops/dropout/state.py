"""The state of dropout, (seed, offset), drawn from the device's own generator: ``fasttx::rng_state``.

A call of a model draws once. Each place in it that drops something takes the next row of a table, (seed, offset + n)
for the n-th: three launches a layer become four a call. :func:`new_rng_state` is where every function gets its state
from; without a call of a model around it, or where that must not be used, it draws one.

It must not be used where a part of the model will be run again to get its gradient (activation checkpointing), unless
the part is handed what it took: a layer whose checkpointing we know is (:func:`handed_over`, :class:`Resumed`). Others
are recognised, by hooks on what autograd saves, by a grad mode that was switched, or by a backward that runs. They draw
for themselves, and PyTorch rewinds the generator for them.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ..library import LIB

# device by keyword: where torch.compile recomputes under a checkpoint it looks there for the generator to rewind
LIB.define(
    "rng_state(*, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
)


def _rng_state_fake(*, device: torch.device) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device)


def _rng_state(*, device: torch.device) -> Tensor:
    """(seed, offset) from the device's own generator: as reproducible as torch.manual_seed, safe in CUDA graphs."""
    return torch.empty(2, dtype=torch.int64, device=device).random_()


LIB.impl("rng_state", _rng_state, "CompositeExplicitAutograd")
torch.library.register_fake("fasttx::rng_state", _rng_state_fake, lib=LIB)

_draw = torch.ops.fasttx.rng_state.default
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_running_backward = torch._C._current_graph_task_id


def new_rng_state(device: torch.device) -> Tensor:
    """A fresh dropout state: int64 (2,) on `device`, (seed, offset), which kernels read by pointer."""
    if torch.compiler._is_exporting_flag:  # a program that is to run without fasttx
        return torch.randint(2**62, (2,), device=device)
    call = calls.traced if torch.compiler.is_dynamo_compiling() else calls.running
    state = None if call is None else call.take(device)
    return _draw(device=device) if state is None else state


def states_of(drawn: Tensor, n: int) -> tuple[Tensor, ...]:
    """n states from the one that was drawn: (seed, offset), (seed, offset + 1), and so on, views of one tensor."""
    seed, offset = drawn.unbind(0)
    return torch.stack((seed.expand(n), offset + torch.arange(n, device=drawn.device)), 1).unbind(0)


class _Call:
    """A call of a model: the states that it drew, and how many are taken."""

    __slots__ = ("places", "device", "states", "taken", "surroundings")

    def __init__(self, places: int, surroundings: tuple[Any, ...]) -> None:
        self.places, self.taken, self.surroundings = places, 0, surroundings
        self.device: torch.device | None = None
        self.states: tuple[Tensor, ...] = ()

    def take(self, device: torch.device) -> Tensor | None:
        """The next state; None on another device, and where what runs may be run again without this call."""
        surroundings = torch.is_grad_enabled(), _saved_tensors_hooks(True), _running_backward()
        if self.surroundings != surroundings or (self.device is not None and self.device != device):
            return None
        if self.taken == len(self.states):
            self.draw(device)
        state = self.states[self.taken]
        self.taken += 1
        return state

    def draw(self, device: torch.device) -> None:
        self.device, self.taken = device, 0
        self.states = states_of(_draw(device=device), self.places)


def _surroundings() -> tuple[Any, ...]:
    """What differs where autograd runs something in order to run it again, and when it does."""
    return torch.is_grad_enabled(), _saved_tensors_hooks(True), _running_backward()


class _TracedState:
    """One state of a call that dynamo traces, and those that follow. No number says which: graphs would hang on it."""

    def __init__(self, state: Tensor, rest: _TracedState | None) -> None:
        self.state, self.rest = state, rest


class _TracedCall:
    """A call of a model within a graph: no part of it is run again but by the graph itself."""

    def __init__(self, places: int, device: torch.device) -> None:
        self.device = device
        rest = None
        for state in reversed(states_of(_draw(device=device), places)):
            rest = _TracedState(state, rest)
        self.rest = rest

    def take(self, device: torch.device) -> Tensor | None:
        first = self.rest
        if first is None or device != self.device:
            return None
        self.rest = first.rest
        return first.state


class _Calls(threading.local):
    """The call of a model that each thread is in, and the one that dynamo traces in it: eager code that a graph calls
    must not take from the latter, as nobody would know what it took when it is run again."""

    def __init__(self) -> None:  # in each thread: dynamo's guards look into the instance
        self.running: _Call | None = None
        self.traced: _TracedCall | None = None


calls = _Calls()


def began(places: int) -> _Call | None:
    """Begins a call of a model that drops something in so many places, unless one is running; returns what
    ``calls.running`` was, to be put back in a ``finally``."""
    before, surroundings = calls.running, _surroundings()
    if before is None or before.surroundings != surroundings:
        calls.running = _Call(places, surroundings)
    return before


def began_tracing(places: int, device: torch.device) -> _TracedCall | None:
    """:func:`began` for a graph that dynamo makes of a whole model, of whose parts none is run again by eager code."""
    before = calls.traced
    if before is None:
        calls.traced = _TracedCall(places, device)
    return before


# ----------------------------------------------------------------------------------- layers that autograd runs again


class Handed:
    """What a checkpointed layer takes its states from, each time that it is run: an argument of its call."""

    __slots__ = ("call", "states", "taken", "after")

    def __init__(self, call: _Call) -> None:
        self.call, self.states, self.taken = call, call.states, call.taken
        self.after = (call.states, call.taken)

    def give_back(self) -> None:
        """After the layer's first run: what follows takes what this has left."""
        self.call.states, self.call.taken = self.after


def handed_over(device: torch.device) -> Handed | None:
    """What is to be given to a layer that will be run again; None where it has to draw for itself."""
    call = calls.running
    if call is None or call.surroundings != _surroundings() or (call.device is not None and call.device != device):
        return None
    if call.taken == len(call.states):
        call.draw(device)  # now: within the layer the generator is rewound
    return Handed(call)


class Resumed:
    """Around each run of the layer: what it drops is what `handed` says."""

    __slots__ = ("handed", "call", "before")

    def __init__(self, handed: Handed) -> None:
        self.handed = handed

    def __enter__(self) -> None:
        handed = self.handed
        self.call = _Call(handed.call.places, _surroundings())
        self.call.device, self.call.states, self.call.taken = handed.call.device, handed.states, handed.taken
        self.before, calls.running = calls.running, self.call

    def __exit__(self, *problem: object) -> None:
        calls.running = self.before
        self.handed.after = (self.call.states, self.call.taken)
