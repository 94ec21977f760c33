"""Attention with a learned bias for each pair of positions, shared by all layers, and no attention interface: MPNet.

A patched encoder computes the bias once for all sequences of a batch. On a packed batch it does so for the longest
sequence, and the layers hand on, in place of a mask, where sequences start: the packed kernel reads the bias within
each, and sums its gradient over them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...functional._packing import Layout
from ...nn.bypass import bypass_reason
from ...ops.attention.masks import hides
from ...ops.checks import values_may_be_read
from ...ops.decisions import note
from ..attention.interface import fasttx_attention
from ..options import ModulePatch
from ..subclass import subclass_of
from ..tracing import graph_in_the_making
from .fusion import Fusion
from .joint_linear import joint_linear
from .qkv import note_of_parts, parts_now
from .residual_norm import BERT_NORM, REPORTED_AS, RESIDUAL_NORM

LAYERS = ("q", "k", "v")


class Starts(NamedTuple):
    """Where the sequences of a packed batch are, in place of a mask.

    Attributes:
        cu_seqlens: int32 (batch + 1,).
        max_seqlen: the longest sequence.
    """

    cu_seqlens: Tensor
    max_seqlen: int


def key_mask(mask: Tensor) -> Tensor | None:
    """(batch, length) bool, True at real tokens, of an additive mask (batch, 1, 1, length); None of other masks.

    A number that is neither 0 nor hides a key makes it another mask, where numbers may be read; elsewhere it hides.
    """
    if mask.dim() != 4 or mask.shape[1:3] != (1, 1) or not mask.is_floating_point():
        return None
    keys = mask[:, 0, 0]
    real = keys == 0
    readable = values_may_be_read(mask.device) and not graph_in_the_making(mask)
    return None if readable and not bool((real | hides(keys)).all()) else real


def run_layers(encoder: Any, packed: Tensor, layout: Layout) -> Tensor:
    """The last hidden states (total, width) of a packed batch (total, width)."""
    bias: Tensor = encoder.compute_position_bias(packed.new_empty(1, layout.max_seqlen, 1))
    starts, hidden = Starts(layout.cu_seqlens, layout.max_seqlen), packed[None]
    for layer in encoder.layer:
        hidden = layer(hidden, starts, bias)[0]
    return hidden.squeeze(0)


def not_ready(encoder: Any) -> str | None:
    """Which attention would not know what to do with a packed batch, or None."""
    for i, layer in enumerate(encoder.layer):
        attention = layer.attention.attn
        patch: ModulePatch | None = getattr(attention, "_fasttx", None)
        if patch is None or not patch.options.attention:
            return f"layer.{i}.attention.attn is not patched"
        reason = unfused_reason(attention)
        if reason is not None:
            return f"in layer.{i}.attention.attn {reason}"
    return None


def shared_bias_class(original: type, module: str) -> type:
    """The subclass of an encoder that computes one position bias for a batch, and not a copy for each sequence.

    Args:
        original: with ``compute_position_bias(hidden_states, ...)``, which looks at the shape alone.
        module: where pickle finds the class.
    """
    every: Callable[..., Tensor] = original.compute_position_bias  # type: ignore[attr-defined]

    @functools.wraps(every)
    def compute_position_bias(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        patched = getattr(self, "_fasttx", None) is not None
        return every(self, x[:1] if patched else x, *args, **kwargs)

    return subclass_of(original, compute_position_bias, module, "compute_position_bias")


def unfused_reason(attention: Any) -> str | None:
    """Why this attention must be computed by transformers' own forward, or None."""
    return bypass_reason(attention.dropout, "dropout", cls="Dropout")


def biased_attention_class(original: type, module: str) -> type:
    """The subclass of a self-attention that gets its position bias from the encoder.

    Args:
        original: with ``q``, ``k``, ``v``, ``o``, ``dropout``, ``attention_head_size`` and ``forward(hidden_states,
            attention_mask=None, position_bias=None, output_attentions=False)``.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.attention or unfused_reason(self) is not None:
            return original_forward(self, hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        out, weights = _attend(self, hidden_states, attention_mask, position_bias, output_attentions, patch.options.qkv)
        out = self.o(out)
        return (out, weights) if output_attentions else (out,)

    forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
    return subclass_of(original, forward, module)


def _attend(
    module: Any, hidden: Tensor, mask: Any, position_bias: Tensor | None, output_attentions: bool, joint: bool
) -> tuple[Tensor, Tensor | None]:
    """What comes before the output layer, (batch, seqlen, heads * head_dim), and the weights."""
    lead, head_dim = hidden.shape[:-1], module.attention_head_size
    products = [x.view(*lead, -1, head_dim) for x in _products(module, hidden, joint)]
    arguments: dict[str, Any] = {
        "dropout": module.dropout.p if module.training else 0.0,
        "scaling": head_dim**-0.5,
        "is_causal": False,
        "position_bias": position_bias,
        "output_attentions": output_attentions,
    }
    if isinstance(mask, Starts):
        (starts, longest), mask = mask, None
        arguments |= dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=longest, max_length_k=longest)
    q, k, v = (x.transpose(1, 2) for x in products)
    out, weights = fasttx_attention(module, q, k, v, mask, **arguments)
    return out.reshape(*lead, -1), weights


def _products(module: Any, hidden: Tensor, joint: bool) -> list[Tensor]:
    parts = parts_now(module, LAYERS, hidden) if joint else "qkv=False"
    note_of_parts(parts, hidden)
    if isinstance(parts, str):
        return [getattr(module, name)(hidden) for name in LAYERS]
    return list(joint_linear(hidden, *parts))


def attended_norm_class(original: type, module: str) -> type:
    """The subclass of the first half of a layer: self-attention, its output layer, dropout, the sum and layer norm.

    Args:
        original: with ``attn``, ``dropout``, ``LayerNorm`` and ``forward(hidden_states, ...)``, which hands the rest to
            ``attn``.
        module: where pickle finds the class.
    """
    original_forward: Callable[..., Any] = original.forward  # type: ignore[attr-defined]

    @functools.wraps(original_forward)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        patch: ModulePatch | None = getattr(self, "_fasttx", None)
        if patch is None or not patch.options.norm:
            return original_forward(self, hidden_states, *args, **kwargs)
        reason = BERT_NORM.unfused_reason_now(self, hidden_states, patch)
        note(REPORTED_AS, "three calls" if reason else "one call", reason or "")
        if reason is not None:
            return original_forward(self, hidden_states, *args, **kwargs)
        attended, *weights = self.attn(hidden_states, *args, **kwargs)
        return (BERT_NORM.fused(self, patch, attended, hidden_states), *weights)

    forward._fasttx_packs = original_forward  # type: ignore[attr-defined]
    return subclass_of(original, forward, module)


ATTENDED_NORM = dataclasses.replace(RESIDUAL_NORM, replace=attended_norm_class)
BIASED_ATTENTION = Fusion(
    option="attention",
    before="attention: transformers' own",
    after="attention: fasttx",
    op="attention",
    where="",
    unfused_reason=unfused_reason,
    replace=biased_attention_class,
)
SHARED_BIAS = Fusion(
    option="attention",
    before="position bias of each sequence",
    after="one for a batch",
    op="",
    where="",
    unfused_reason=lambda encoder: None,
    replace=shared_bias_class,
)
