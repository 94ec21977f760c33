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
        below: list[tuple[str, Any]] = []
        for name, module in found:
            if step == "*":
                for i, child in enumerate(module.children()):
                    below.append((f"{name}.{i}", child))
            else:
                below.append((f"{name}.{step}" if name else step, module._modules[step]))
        found = below
    return found


def strange_part(encoder: Any, forwards: Forwards, beside: Sequence[str] = ()) -> str | None:
    """What in a layer is a user's own and might not cope with a packed batch, or None: a forward that may lose where
    sequences start; a hook, which would see one row of all tokens. `beside`: other children that see it."""
    for steps, forward in forwards:
        for name, module in _below(encoder, steps):
            found = type(module).forward
            # or one of ours that passes on where sequences start
            right = found is forward or getattr(found, "_fasttx_packs", None) is forward
            if not right or ("forward" in module.__dict__ and has_own_forward(module)):
                return name
    if not torch.compiler.is_compiling():
        for name, part in (*_below(encoder, forwards[0][0]), *((name, encoder._modules[name]) for name in beside)):
            if part is not None and _has_foreign_hook(part):
                return f"a hook in {name}"
    return None


def _has_foreign_hook(module: nn.Module) -> bool:
    """Whether a hook hangs on `module` or below that is not of torch.distributed (FSDP), torch.nn.utils (pruning
    and norms of weights) or transformers (output capture), which do not look at the batch."""
    left = [module]
    while left:  # each call of a model comes here: no function is called for a module without hooks
        state = left.pop().__dict__
        for hooks in (
            state["_forward_pre_hooks"],
            state["_forward_hooks"],
            state["_backward_pre_hooks"],
            state["_backward_hooks"],
        ):
            if hooks and not all(map(_is_known, hooks.values())):
                return True
        for child in state["_modules"].values():
            if child is not None:
                left.append(child)
    return False


def _is_known(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)
    # That of pruning is an object, which may be of a user's class; its call is PyTorch's.
    origins = [getattr(of, "__module__", None) or "" for of in (hook, type(hook).__call__)]
    return any(origin.startswith(("torch.distributed.", "torch.nn.utils.", "transformers.")) for origin in origins)
