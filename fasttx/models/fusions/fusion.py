"""Child modules of a layer that a patch replaces by fewer kernels: what the engine has to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...functional._routing import unsupported_reason
from ...ops.backends import forced_backend
from ..report import expected_backend
from ..role import Found, Role

UNFUSED_ON = frozenset(("cpu",))
"""Types of device on which transformers' own forward runs, as it is as fast there, unless a backend is forced."""
AS_FAST = "on a {} separate calls are as fast"
"""Why such a fusion is not used, with the type of the device in capitals."""
WHERE = f"fused on a GPU; {AS_FAST.format('CPU')}"
"""On which devices such a fusion is used, for the report."""


@dataclass(frozen=True)
class Fusion(Role):
    """A module within the layers of a family that runs as fewer kernels.

    Attributes:
        option: the argument of :func:`fasttx.patch` that asks for it.
        before, after: what transformers calls there and what a patched module does, for the report.
        op: the op in the table that decides on the backend, or "" if none does.
        unfused_reason: why this module has to be called as transformers does, or None.
        replace: makes the subclass, from transformers' class and the module where pickle finds the new one.
        where: on which devices, for the report.
        needs_attention: whether it belongs to a module that has to call fasttx's attention for it.
    """

    option: str
    before: str
    after: str
    op: str
    unfused_reason: Callable[[Any], str | None]
    replace: Callable[[type, str], type]
    where: str = WHERE
    needs_attention: bool = False

    def before_in(self, module: nn.Module) -> str:
        return self.before

    def plan(self, found: Found) -> bool:
        reason = found.fixed_reason or self.unfused_reason(found.module)
        if self.needs_attention and not found.has_attention:
            reason = "is fused with fasttx's attention alone, which this patch leaves out"
        if reason is not None:
            found.leave(self.before, reason)
            return False
        requested = found.options.backend
        backend = expected_backend(self.op, requested, found.module) if self.op else "torch"
        here = changes_here(found.module, requested)
        found.replace(self.before, self.after, backend, self.where, here, (self.op,) if self.op else ())
        return True

    def make_class(self, original: type, module: str) -> type:
        return self.replace(original, module)


def changes_here(module: nn.Module, backend: str | None) -> bool:
    """Whether a fusion runs on the device where `module` is now; elsewhere transformers' own forward does.

    Args:
        module: what is replaced; its first parameter tells the device.
        backend: what the patch asks for, or "auto"; None for a fusion that no op computes, so that the device decides.
    """
    if backend == "auto":
        backend = forced_backend()
    device = next((parameter.device.type for parameter in module.parameters()), "")
    return backend != "torch" and (backend not in (None, "auto") or device not in UNFUSED_ON)


def unfused_reason_now(
    module: Any, x: Tensor, backend: str, unfused_reason: Callable[[Any], str | None], weighted: str
) -> str | None:
    """Why this call of a fusion runs as transformers does, or None.

    Args:
        module: the patched module.
        x: what it is called with.
        backend: what the call is forced to, or "auto".
        unfused_reason: see :class:`Fusion`.
        weighted: name of the child whose weight and bias are used without calling it.
    """
    if backend == "torch":
        return "backend='torch' asks for PyTorch's own operators"
    device = x.device.type
    if backend == "auto" and device in UNFUSED_ON:
        return AS_FAST.format(device.upper())
    reason = unfused_reason(module)
    if reason is not None or backend != "auto":  # a forced backend answers for itself
        return reason
    child = module._modules[weighted]
    own = child._parameters
    weight, bias = (own["weight"], own["bias"]) if "weight" in own and "bias" in own else weight_and_bias(child)
    return unsupported_reason(x, weight, bias)


def weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    """Both as they are now, without a call of Module.__getattr__ for each where they are parameters, as they are but in
    the replicas of DataParallel and under FSDP."""
    own = module._parameters
    if "weight" in own and "bias" in own:
        return own["weight"], own["bias"]
    return module.weight, getattr(module, "bias", None)
