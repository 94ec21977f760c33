"""The end of each half of a BERT layer, dropout, sum with the half's input and layer norm, as one kernel.

A patched module calls its product as ever and passes over dropout and norm. Where one of these is not exactly torch's
or has a hook, and where no kernel would run (a CPU, on which torch's three functions are as fast), transformers' own
forward runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..functional.residual_norm import dropout_add_layer_norm_on
from ..nn.bypass import bypass_reason
from ..ops.decisions import note
from ..ops.registry import forced_backend
from .options import ModulePatch
from .part import Part, apart_now
from .replacement import subclass_of

NAME = "dropout, sum, layer norm"


def apart_reason(output: Any) -> str | None:
    """Why dropout and norm of this module must be called one by one, or None."""
    reason = bypass_reason(output.LayerNorm, "LayerNorm", cls="LayerNorm")
    reason = reason or bypass_reason(output.dropout, "dropout", cls="Dropout")
    if reason is not None:
        return reason
    if len(output.LayerNorm.normalized_shape) != 1:
        return "LayerNorm is over several dimensions"
    if output.dropout.p >= 1.0:
        return "dropout drops everything"
    return None


def residual_norm_class(original: type, module: str) -> type:
    """The subclass of a transformers module that ends one half of a layer.

    Args:
        original: with ``dense``, ``dropout``, ``LayerNorm`` and ``forward(hidden_states, input_tensor)``.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, hidden_states, input_tensor)
        backend = patch.options.forced or forced_backend()
        reason = apart_now(self, input_tensor, backend, apart_reason, attrgetter("LayerNorm"))
        note(NAME, "three calls" if reason else "one call", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states, input_tensor)
        norm = self.LayerNorm
        return dropout_add_layer_norm_on(
            patch.options.forced, self.dense(hidden_states), input_tensor, norm.weight, norm.bias,
            dropout_p=self.dropout.p if self.dropout.training else 0.0, eps=norm.eps,
        )  # fmt: skip

    return subclass_of(original, forward, module)


RESIDUAL_NORM = Part(
    option="norm",
    before=NAME,
    after="dropout_add_layer_norm",
    op="dropout_add_layer_norm",
    where="on a GPU; on a CPU three calls, which are as fast there",
    apart=apart_reason,
    replace=residual_norm_class,
)
