"""Query, key and value of self-attention as one product.

A patched self-attention passes over its three layers and joins their weights, in every forward anew: no copy is kept
that an optimizer or a loaded checkpoint would leave behind. Where a layer is not exactly ``torch.nn.Linear`` (LoRA,
quantised, parametrised), has a hook or a tensor subclass for a weight, and in calls with a cache, transformers' own
forward runs. So it does on a CPU, where joining the weights costs more than two products less gain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..functional.eligibility import uncovered
from ..functional.joint_linear import joint_linear
from ..nn.bypass import bypass_reason
from ..ops.decisions import note
from .call_names import CACHE, argument
from .hf_attention import NAME, fasttx_attention
from .options import ModulePatch
from .replacement import subclass_of

LAYERS = ("query", "key", "value")
SEPARATE_ON = frozenset(("cpu",))
"""Types of device on which the three products stay separate."""


def separate_reason(attention: Any) -> str | None:
    """Why the layers of this self-attention must be called one by one, or None."""
    layers = [getattr(attention, name, None) for name in LAYERS]
    for name, layer in zip(LAYERS, layers, strict=True):
        reason = bypass_reason(layer, name, cls="Linear")
        if reason is not None:
            return reason
    weights: list[Any] = [layer.weight for layer in layers]  # type: ignore[union-attr]
    biases: list[Any] = [layer.bias for layer in layers]  # type: ignore[union-attr]
    if len({(w.dtype, w.device, w.shape[1]) for w in weights}) > 1:
        return "query, key and value differ in dtype, device or width"
    if len({b is None for b in biases}) > 1:
        return "some of query, key and value have a bias, others none"
    return None


def _separate_now(attention: Any, hidden_states: Tensor, cache: Any) -> str | None:
    """Why this call runs the three layers one by one, or None."""
    if hidden_states.device.type in SEPARATE_ON:
        return f"on a {hidden_states.device.type} they are as fast"
    if cache is not None:
        return "the call has a cache"
    if attention.config._attn_implementation != NAME:
        return f"attn_implementation is {attention.config._attn_implementation!r}"
    return separate_reason(attention) or uncovered(hidden_states, *(getattr(attention, n).weight for n in LAYERS))


def joint_qkv_class(original: type, module: str) -> type:
    """The subclass of a transformers self-attention that computes query, key and value in one product.

    Args:
        original: the self-attention, with ``query``, ``key``, ``value``, ``dropout``, ``scaling``,
            ``attention_head_size`` and ``forward(hidden_states, attention_mask=None, cache=None, ...)``, where the
            cache may be called otherwise.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.qkv:
            return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)
        reason = _separate_now(self, hidden_states, rest[0] if rest else argument(kwargs, CACHE))
        note("query, key, value", "one product" if reason is None else "three products", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states, attention_mask, *rest, **kwargs)
        layers = [getattr(self, name) for name in LAYERS]
        biases = None if layers[0].bias is None else [layer.bias for layer in layers]
        lead = hidden_states.shape[:-1]
        q, k, v = (
            x.view(*lead, -1, self.attention_head_size).transpose(1, 2)
            for x in joint_linear(hidden_states, [layer.weight for layer in layers], biases)
        )
        dropout = self.dropout.p if self.training else 0.0
        out, weights = fasttx_attention(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return out.reshape(*lead, -1), weights

    forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
    return subclass_of(original, forward, module)
