"""One draw of dropout's states for a call of a model, and for what is run again to get its gradient.

A bare model and its encoder begin a call (:mod:`fasttx.ops.dropout.state`), whose functions then share one draw. A
layer whose gradients transformers checkpoints is given what it takes as an argument, so that it drops the same when it
is run again, and the same as without checkpointing. A layer that is called alone draws for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.dropout import state
from .options import Options
from .role import Found, Role
from .subclass import subclass_of

HANDED = "fasttx_dropout"
"""The argument of a layer's call; no forward of transformers' sees it."""

_OWN = ("torch.nn.", "transformers.", "fasttx.")


def places_of(module: nn.Module) -> int:
    """In how many places a module drops something, for the size of a draw; where it drops more, it draws again."""
    return max(1, sum(isinstance(child, nn.Dropout) for child in module.modules()))


def _is_run_once(module: nn.Module) -> bool:
    """Whether nothing in a module that dynamo traces is run again by eager code, as far as one can see."""
    for child in module.modules():
        if not type(child).__module__.startswith(_OWN) or getattr(child, "gradient_checkpointing", False):
            return False
    return True


def with_one_draw(call: Callable[..., Any], device: torch.device, module: Any, /, *args: Any, **kwargs: Any) -> Any:
    """call(module, *args, **kwargs) in which everything that drops something shares one draw.

    Args:
        call: the forward of a patched model or encoder in training.
        device: where its inputs are.
        module: that model or encoder.
    """
    if torch.compiler.is_dynamo_compiling():
        if not _is_run_once(module):
            return call(module, *args, **kwargs)
        traced = state.began_tracing(getattr(module, "_fasttx_places", 1), device)
        try:
            return call(module, *args, **kwargs)
        finally:
            state.calls.traced = traced
    before = state.began(getattr(module, "_fasttx_places", 1))
    try:
        return call(module, *args, **kwargs)
    finally:
        state.calls.running = before


@dataclass(frozen=True)
class Layer(Role):
    """A layer of an encoder that transformers may checkpoint."""

    option = "norm"

    def is_wanted(self, options: Options) -> bool:
        return options.attention or options.norm or options.mlp

    def plan(self, found: Found) -> bool:
        return found.fixed_reason is None

    def make_class(self, original: type, module: str) -> type:
        return layer_class(original, module)


def layer_class(original: type, module: str) -> type:
    """The subclass of a layer that drops the same each time it is run for one call of its model.

    Args:
        original: the layer; ``gradient_checkpointing`` says that its call runs its forward twice.
        module: where pickle finds the class.
    """
    original_call: Callable[..., Any] = original.__call__
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        handed = kwargs.pop(HANDED, None)
        if handed is None:
            return original_forward(self, *args, **kwargs)
        with state.Resumed(handed):
            return original_forward(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        checkpointed = self.training and getattr(self, "gradient_checkpointing", False)
        if not checkpointed or "_fasttx" not in self.__dict__ or torch.compiler.is_dynamo_compiling():
            return original_call(self, *args, **kwargs)
        handed = state.handed_over(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).device)
        if handed is None:
            return original_call(self, *args, **kwargs)
        out = original_call(self, *args, **kwargs, **{HANDED: handed})
        handed.give_back()
        return out

    forward._fasttx_packs = getattr(original_forward, "_fasttx_packs", original_forward)  # type: ignore[attr-defined]
    made = subclass_of(original, forward, module)
    made.__call__ = call  # type: ignore[method-assign]
    return made
