"""What torch.jit.script compiles in place of a drop-in: TorchScript knows none of our functions."""

from __future__ import annotations

import torch
from torch import nn


def prepare_scriptable(module: nn.Module) -> nn.Module:
    """A module of torch.nn's own class on the very parameters, buffers and hooks of `module`, a drop-in of ours.

    torch.jit.script asks each module for ``__prepare_scriptable__`` and compiles what it gets. A subclass of a drop-in
    keeps its class, as its forward may be another. What is within is made over again, too: torch would put it into its
    real parent. It does so with a parent that is not ours: drop-ins inside a Sequential that is scripted are torch's
    afterwards.
    """
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if "__prepare_scriptable__" in vars(kind):  # a drop-in itself
        kind = next(c for c in kind.__mro__ if c.__module__.startswith("torch.nn.modules."))
    twin: nn.Module = kind.__new__(kind)
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = {
        name: None if child is None else prepare_scriptable(child) for name, child in module._modules.items()
    }
    return twin
