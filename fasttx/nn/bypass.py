"""Whether a module's weights may be used without calling the module.

The answer is asked for in every call and never remembered: what a memory would have to be checked against (the class,
the hooks, a forward on the instance) is all that the answer depends on. So it is one Python frame, which looks at those
and nothing else.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as every_module

_MATRICES = ("Linear", "Embedding")
"""Classes whose weight is a matrix, unless it was sharded."""


def _asks_for_gradients_alone(state: dict[str, Any]) -> bool:
    """Whether a module's hooks are the one with which transformers checkpoints layers, ``requires_grad_`` on what comes
    out of an embedding, where that requires a gradient anyway."""
    if state["_forward_pre_hooks"] or state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return False
    for hook in state["_forward_hooks"].values():
        if getattr(hook, "__name__", "") != "make_inputs_require_grads":
            return False
    weight = state["_parameters"].get("weight")
    return weight is not None and bool(weight.requires_grad)


def bypass_reason(module: Any, name: str, *, source: str = "torch.nn.modules", cls: str | None = None) -> str | None:
    """Why `module` must be called as it is, or None if nothing would be missed by using its parts instead.

    Args:
        module: what would be passed over.
        name: what to call it in the reason.
        source: the module that its class must come from, or a package around it.
        cls: the name of that class; None allows any of `source`.
    """
    kind = type(module)
    if not isinstance(module, nn.Module) or not f"{kind.__module__}.".startswith(f"{source}."):
        return f"{name} is a {kind.__module__}.{kind.__name__}"
    if cls is not None and kind.__name__ != cls:
        return f"{name} is a {kind.__name__}"
    state = module.__dict__
    if "forward" in state:
        return f"{name} has a forward of its own"
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    ) and not _asks_for_gradients_alone(state):
        return f"{name} has hooks"
    if (
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    ):
        return "there are hooks on every module"
    weight = state["_parameters"].get("weight")
    if weight is not None and (weight.numel() == 0 or (weight.dim() < 2 and kind.__name__ in _MATRICES)):
        shape = tuple(weight.shape)
        return f"{name} holds a weight of shape {shape}, which FSDP or ZeRO-3 has sharded; wrap the model afterwards"
    return None
