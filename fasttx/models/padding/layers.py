"""Whether the layers of an encoder are those that a packed batch may run through: transformers' own, and no hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..subclass import has_own_forward

Forwards = tuple[tuple[list[str], Callable[..., Any]], ...]
"""transformers' own forward functions of what passes on where sequences start, by the steps of its path."""


def _below(encoder: Any, steps: Sequence[str]) -> list[tuple[str, Any]]:
    """The modules at a path, with their names."""
    found = [("", encoder)]
    for step in steps:
        if step == "*":
            found = [(f"{name}.{i}", child) for name, module in found for i, child in enumerate(module)]
        else:
            found = [(f"{name}.{step}" if name else step, getattr(module, step)) for name, module in found]
    return found


def strange_part(encoder: Any, forwards: Forwards) -> str | None:
    """What in a layer is a user's own and might not cope with a packed batch, or None: a forward that may lose where
    sequences start; a hook, which would see one row of all tokens."""
    for steps, forward in forwards:
        for name, module in _below(encoder, steps):
            if not _has_forward(module, forward):
                return name
    if not torch.compiler.is_compiling():
        for name, layer in _below(encoder, forwards[0][0]):
            if _has_foreign_hook(layer):
                return f"a hook in {name}"
    return None


def _has_foreign_hook(module: nn.Module) -> bool:
    """Whether a hook hangs on `module` or below that is not of torch.distributed (FSDP), torch.nn.utils (pruning
    and norms of weights) or transformers (output capture), which do not look at the batch."""
    state = module.__dict__
    for when in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
        if state[when] and not all(map(_is_known, state[when].values())):
            return True
    return any(child is not None and _has_foreign_hook(child) for child in state["_modules"].values())


def _is_known(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)
    # That of pruning is an object, which may be of a user's class; its call is PyTorch's.
    origins = [getattr(of, "__module__", None) or "" for of in (hook, type(hook).__call__)]
    return any(origin.startswith(("torch.distributed.", "torch.nn.utils.", "transformers.")) for origin in origins)


def _has_forward(module: Any, forward: Callable[..., Any]) -> bool:
    found = type(module).forward
    packs = getattr(found, "_fasttx_packs", None) is forward  # one of ours that passes on where sequences start
    return (found is forward or packs) and not has_own_forward(module)
