"""Models that are patched before they are where they will run: their kernels are checked at their first call there.

`Trainer` and most loops move a model to its GPU after it was patched. So :func:`watch` has "auto" ask here before it
chooses a kernel on a device, and the model's own check runs when its parameters are found there. Afterwards an op asks
for no more than whether the device is in a set.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..ops import verdicts
from . import first_use

_models: list[Waiting] = []
_checking = threading.RLock()
_listing = threading.RLock()  # not for long: a thread that patches a model does not wait for a check in another one


class Waiting:
    """A patched model, the ops it calls, the devices on which these were checked, and how that is done."""

    def __init__(self, root: nn.Module, ops: Sequence[str], check: Callable[[nn.Module], Any]) -> None:
        self.root, self.ops, self.check = weakref.ref(root, self._drop), tuple(ops), check
        self.done: set[torch.device] = set()
        self.parameter: Callable[[], nn.Parameter | None] = _nothing

    def _drop(self, _: object) -> None:
        with _listing:
            if self in _models:
                _models.remove(self)

    def ask(self, device: torch.device) -> None:
        """Checks the model if it is on this device now."""
        root = self.root()
        if root is None:
            return
        parameter = self.parameter()
        if parameter is None:  # it was not looked for, or the model has others by now
            parameter = next((p for p in root.parameters() if p.is_floating_point()), None)
            self.parameter = _nothing if parameter is None else weakref.ref(parameter)
        if parameter is None or parameter.device != device or first_use.being_recorded(device) is not None:
            return
        with _checking:
            if device not in self.done:
                self.done.add(device)
                self.check(root)


def _nothing() -> None:
    return None


def _ask(device: torch.device) -> None:
    for model in tuple(_models):
        if device not in model.done:
            model.ask(device)


def watch(root: nn.Module, ops: Sequence[str], check: Callable[[nn.Module], Any], done: Iterable[torch.device]) -> None:
    """Has these ops of a model checked when it first runs on a device that is none of `done`."""
    waiting = Waiting(root, ops, check)
    waiting.done.update(done)
    with _listing:
        others = [model for model in _models if model.root() is not root or model.ops != tuple(ops)]
        _models[:] = [*(model for model in others if model.root() is not None), waiting]
        if _ask not in verdicts.at_a_call:
            verdicts.at_a_call.append(_ask)
