"""The first half of a BERT layer's MLP: the product, then its bias and GELU as one kernel.

A patched module passes over its linear layer and its activation. Where one of these is not plain (LoRA, quantised,
hooks, another activation), and where no kernel would run, transformers' own forward runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..functional.activations import linear_gelu_on
from ..nn.bypass import bypass_reason
from ..ops.decisions import note
from ..ops.registry import forced_backend
from .options import ModulePatch
from .part import Part, apart_now
from .replacement import subclass_of

NAME = "product, bias, GELU"
APPROXIMATE = {"GELUActivation": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh"}
"""Class of transformers' activation -> the form of GELU that it computes."""


def apart_reason(intermediate: Any) -> str | None:
    """Why product and activation of this module must be called one by one, or None."""
    reason = bypass_reason(intermediate.dense, "dense", cls="Linear")
    if reason is not None:
        return reason
    activation = intermediate.intermediate_act_fn
    if type(activation).__name__ not in APPROXIMATE:
        name = getattr(activation, "__name__", type(activation).__name__)
        return f"the activation is {name}, no form of GELU that the kernel has"
    return bypass_reason(activation, "the activation", source="transformers.activations")


def linear_gelu_class(original: type, module: str) -> type:
    """The subclass of a transformers module that widens the hidden states.

    Args:
        original: with ``dense``, ``intermediate_act_fn`` and ``forward(hidden_states)``.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, hidden_states: Tensor) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.mlp:
            return original_forward(self, hidden_states)
        backend = patch.options.forced or forced_backend()
        reason = apart_now(self, hidden_states, backend, apart_reason, attrgetter("dense"))
        note(NAME, "two calls" if reason else "one call", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states)
        return linear_gelu_on(
            patch.options.forced, hidden_states, self.dense.weight, self.dense.bias,
            approximate=APPROXIMATE[type(self.intermediate_act_fn).__name__],
        )  # fmt: skip

    return subclass_of(original, forward, module)


LINEAR_GELU = Part(
    option="mlp",
    before=NAME,
    after="linear_gelu",
    op="bias_gelu",
    where="on a GPU; on a CPU two calls, which are as fast there",
    apart=apart_reason,
    replace=linear_gelu_class,
)
