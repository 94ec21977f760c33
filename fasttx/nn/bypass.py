"""Whether a module's weights may be used without calling the module."""

from __future__ import annotations

from typing import Any

from torch import nn

_WHEN = ("forward", "forward_pre", "backward", "backward_pre")


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
    if any(
        state[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ):
        return f"{name} has hooks"
    if any(getattr(nn.modules.module, f"_global_{when}_hooks") for when in _WHEN):
        return "there are hooks on every module"
    return None
