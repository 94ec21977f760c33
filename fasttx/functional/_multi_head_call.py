"""A call of multi-head attention: its parameters, what it asks for, and why torch's own function takes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.backends import forced_backend
from ._routing import DERIVATIVES, OTHER_FLOATS, unsupported_reason


class Projections(NamedTuple):
    """The parameters of multi-head attention.

    Attributes:
        weights: (3 E, E) alone, or (E, E), (E, features of key), (E, features of value).
        biases: (3 E,) or None.
        bias_k, bias_v: (1, 1, E), one more key and value, or None.
        out_weight, out_bias: (E, E) and (E,) or None.
    """

    weights: tuple[Tensor | None, ...]
    biases: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return (*self.weights, self.biases, self.bias_k, self.bias_v, self.out_weight, self.out_bias)


class Wants(NamedTuple):
    """What a call asks for besides its tensors."""

    num_heads: int
    add_zero_attn: bool
    dropout_p: float
    need_weights: bool
    average_attn_weights: bool
    is_causal: bool
    batch_first: bool


def why_torch_multi_head(
    query: Any, key: Any, value: Any, key_padding_mask: Any, attn_mask: Any, p: Projections, wants: Wants
) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where `multi_head` does."""
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return "query, key or value is no Tensor"
    reason = unsupported_reason(query, key, value, key_padding_mask, attn_mask, *p.tensors())
    if reason is not None and not _differentiated_here(reason, query):
        return reason
    mixed = any(t is not None and t.dtype != query.dtype for t in (key, value, *p.tensors()))
    if mixed and not torch.is_autocast_enabled(query.device.type):
        return "tensors are of several dtypes"
    dims, width, heads = query.dim(), query.shape[-1], wants.num_heads
    if dims not in (2, 3) or key.dim() != dims or value.dim() != dims:
        return "query, key and value are not all batched or all unbatched"
    if any(p_ is None for p_ in p.weights) or width % heads:
        return "weights are missing, or the heads do not divide the width"
    in_features = (key.shape[-1], value.shape[-1])
    shapes = [(3 * width, width)] if len(p.weights) == 1 else [(width, n) for n in (width, *in_features)]
    if any(w.shape != shape for w, shape in zip(p.weights, shapes, strict=True)):  # type: ignore[union-attr]
        return "a weight's shape is not that of the inputs"
    if len(p.weights) == 1 and in_features != (width, width):
        return "key or value is not as wide as query"
    if (p.biases is not None and p.biases.shape != (3 * width,)) or (p.bias_k is None) != (p.bias_v is None):
        return "biases are missing, or of another shape"
    if p.bias_k is not None and not p.bias_k.shape == p.bias_v.shape == (1, 1, width):  # type: ignore[union-attr]
        return "bias_k or bias_v is not (1, 1, width)"
    if not torch.compiler.is_compiling() and (query.numel() == 0 or key.numel() == 0 or value.numel() == 0):
        return "no element"
    if key.shape[:-1] != value.shape[:-1]:
        return "key and value are not equally long"
    batch, rows, keys = sizes(query, key, wants.batch_first)
    if dims == 3 and key.shape[0 if wants.batch_first else 1] != batch:
        return "query and key have another number of sequences"
    if key_padding_mask is not None and key_padding_mask.shape != ((keys,) if dims == 2 else (batch, keys)):
        return "key_padding_mask is of another shape"
    if attn_mask is not None and attn_mask.shape not in ((rows, keys), (batch * heads, rows, keys)):
        return "attn_mask is of another shape"
    if any(
        m is not None and m.dtype != torch.bool and not m.is_floating_point() for m in (key_padding_mask, attn_mask)
    ):
        return "a mask is neither bool nor floating"
    if wants.is_causal and attn_mask is None:
        return "is_causal without attn_mask"
    if wants.need_weights and forced_backend() == "auto" and query.device.type == "cpu":
        return "with weights, torch's own function is as fast on a CPU"
    return None


def _differentiated_here(reason: str, query: Tensor) -> bool:
    """Whether `multi_head` computes a call by torch's functions that the operators do not cover.

    On a CPU torch's own module gets no second derivative, nor a forward-mode one; `scaled_dot_product_attention` has
    both, in float64 and within transforms too.
    """
    here = reason == DERIVATIVES or (reason == OTHER_FLOATS and query.dtype == torch.float64)
    return here and query.device.type == "cpu" and forced_backend() in ("auto", "torch")


def sizes(query: Tensor, key: Tensor, batch_first: bool) -> tuple[int, int, int]:
    if query.dim() == 2:
        return 1, query.shape[0], key.shape[0]
    along = 1 if batch_first else 0
    return query.shape[1 - along], query.shape[along], key.shape[along]
