"""The first half of a layer's MLP: the product, then its bias and GELU as one kernel.

A patched module passes over its linear layer and its activation. Where one of these is not plain (LoRA, hooks, another
activation), and where no kernel would run, transformers' own method runs. After an int8 product GELU is part of its end
on every device: there it costs no pass, and the product is not rounded before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...functional._gelu import _linear_gelu
from ...nn.bypass import bypass_reason
from ...nn.int8 import Int8Linear
from ...ops import decisions
from ...ops.backends import forced_backend
from ...ops.decisions import note
from ..options import ModulePatch
from ..subclass import subclass_of
from .fusion import Fusion, unfused_reason_now, weight_and_bias

REPORTED_AS = "product, bias, GELU"
APPROXIMATE = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh"}
"""Class of transformers' activation -> the form of GELU that it computes."""


def _unfused_reason(module: Any, linear: str, activation: str) -> str | None:
    """Why product and activation of this module must be called unfused, or None."""
    child = module._modules.get(linear)
    int8 = type(child) is Int8Linear
    reason = bypass_reason(
        child, linear, source="fasttx.nn" if int8 else "torch.nn.modules", cls=None if int8 else "Linear"
    )
    if reason is not None:
        return reason
    function = module._modules[activation] if activation in module._modules else getattr(module, activation)
    if type(function).__name__ not in APPROXIMATE:
        name = getattr(function, "__name__", type(function).__name__)
        return f"the activation is {name}, no form of GELU that the kernel has"
    return bypass_reason(function, "the activation", source="transformers.activations")


def linear_gelu(
    linear: str,
    activation: str,
    method: str = "forward",
    finish: Callable[[Any, Tensor], Tensor] = lambda module, wide: wide,
) -> Fusion:
    """The fusion of a module that widens the hidden states.

    Args:
        linear, activation: names of the module's linear layer and of its activation.
        method: the name of the method that calls both, ``(hidden_states) -> Tensor``.
        finish: of the module and the wide hidden states: what else the method does with them.
    """

    def unfused_reason(module: Any) -> str | None:
        return _unfused_reason(module, linear, activation)

    def replace(original: type, module: str) -> type:
        unfused: Callable[..., Any] = getattr(original, method)

        @functools.wraps(unfused)
        def fused(self: Any, hidden_states: Tensor) -> Any:
            patch: ModulePatch | None = getattr(self, "_fasttx", None)
            if patch is None or not patch.options.mlp:
                return unfused(self, hidden_states)
            backend = patch.options.forced or forced_backend()
            child = self._modules[linear]
            int8 = type(child) is Int8Linear and backend != "torch"
            if int8:
                reason = unfused_reason(self)
            else:
                reason = unfused_reason_now(self, hidden_states, backend, unfused_reason, linear)
            if decisions.records:
                note(REPORTED_AS, "two calls" if reason else "one call", reason or "")
            if reason is not None:
                return unfused(self, hidden_states)
            approximate = APPROXIMATE[type(self._modules[activation]).__name__]
            if int8:
                form = "gelu_tanh" if approximate == "tanh" else "gelu"
                return finish(self, child.forward(hidden_states, form))
            weight, bias = weight_and_bias(child)
            forced = patch.options.forced
            wide = _linear_gelu(hidden_states, weight, bias, approximate=approximate, backend=forced, sure=True)
            return finish(self, wide)

        return subclass_of(original, fused, module, method)

    return Fusion(
        option="mlp",
        before=REPORTED_AS,
        after="linear_gelu",
        op="bias_gelu",
        unfused_reason=unfused_reason,
        replace=replace,
    )


LINEAR_GELU = linear_gelu("dense", "intermediate_act_fn")
