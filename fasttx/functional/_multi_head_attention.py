"""multi_head_attention_forward with torch.nn.functional's name and semantics; what MultiheadAttention computes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from ._multi_head_call import Projections, Wants, sizes, why_torch_multi_head
from ._routing import refuse_if_forced
from ._softmax import softmax
from .attention.sdpa import scaled_dot_product_attention

_canonical_mask = torch_functional._canonical_mask


def same_kind(
    first: Tensor | None, second: Tensor | None, dtype: torch.dtype, names: tuple[str, str]
) -> tuple[Tensor | None, Tensor | None]:
    """Two masks as both bool (True hides) or both floating, with torch's warning where they are not given so."""
    if first is None or second is None or first.dtype == second.dtype:
        return first, second
    first = _canonical_mask(first, names[0], second.dtype, names[1], dtype)
    return first, _canonical_mask(second, names[1], None, "", dtype, False)


def _project(query: Tensor, key: Tensor, value: Tensor, p: Projections, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value as (.., .., heads, head_dim): one product for those that are the same tensor."""
    linear, width = torch_functional.linear, query.shape[-1]
    biases: Any = (None, None, None) if p.biases is None else p.biases.chunk(3)
    if len(p.weights) == 1:
        w: Any = p.weights[0]
        if query is key and key is value:
            q, k, v = linear(query, w, p.biases).unflatten(-1, (3, heads, width // heads)).unbind(-3)
            return q, k, v
        if key is value:
            b = None if p.biases is None else p.biases[width:]
            k, v = linear(key, w[width:], b).unflatten(-1, (2, heads, width // heads)).unbind(-3)
            return linear(query, w[:width], biases[0]).unflatten(-1, (heads, width // heads)), k, v
        weights: Any = w.chunk(3)
    else:
        weights = p.weights
    q, k, v = (
        linear(x, w, b).unflatten(-1, (heads, width // heads))
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    return q, k, v


def _longer(x: Tensor, bias: Tensor | None, zero: bool, along: int) -> Tensor:
    """x (.., .., heads, head_dim) with one more position for `bias`, and one of zeros."""
    if bias is None and not zero:
        return x
    shape = list(x.shape)
    shape[along] = 1
    parts = [x]
    if bias is not None:
        parts.append(bias.view(1, 1, *x.shape[2:]).expand(shape))
    if zero:
        parts.append(x.new_zeros(shape))
    return torch.cat(parts, along)


def one_mask(
    key_padding_mask: Tensor | None, attn_mask: Tensor | None, batch: int, heads: int, more: int = 0
) -> Tensor | None:
    """Both masks, of one kind, as one that broadcasts to (batch, heads, rows, keys + more): the last are seen."""
    masks = []
    if attn_mask is not None:
        split = attn_mask.dim() == 3
        masks.append(attn_mask.view(batch, heads, *attn_mask.shape[1:]) if split else attn_mask[None, None])
    if key_padding_mask is not None:
        masks.append(key_padding_mask.view(batch, 1, 1, key_padding_mask.shape[-1]))
    if not masks:
        return None
    mask = masks[0]
    if len(masks) == 2:
        mask = mask | masks[1] if mask.dtype == torch.bool else mask + masks[1]
    return torch_functional.pad(mask, (0, more)) if more else mask


def _with_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> tuple[Tensor, Tensor]:
    """(out, weights after dropout) of (batch, heads, .., head_dim); a row without a key gives NaN, as torch's does."""
    batch, heads, rows, head_dim = q.shape
    q, k, v = (x.reshape(batch * heads, -1, head_dim) for x in (q * math.sqrt(1.0 / head_dim), k, v))
    keys = k.shape[1]
    if mask is None:
        scores = torch.bmm(q, k.transpose(1, 2))
    else:
        added: Any = _canonical_mask(mask, "attn_mask", None, "", q.dtype, False)
        added = added.expand(batch, heads, -1, -1).reshape(batch * heads, -1, keys)
        scores = torch.baddbmm(added, q, k.transpose(1, 2))
    weights = softmax(scores, -1, dropout_p=dropout_p)
    out = torch.bmm(weights, v)
    return out.view(batch, heads, rows, head_dim), weights.view(batch, heads, rows, keys)


def multi_head(
    query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None,
    p: Projections, wants: Wants,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Multi-head attention of a call that :func:`why_torch_multi_head` allows; masks hide where they are True."""
    heads, batched = wants.num_heads, query.dim() == 3
    key_padding_mask, attn_mask = same_kind(key_padding_mask, attn_mask, query.dtype, ("key_padding_mask", "attn_mask"))
    is_causal = wants.is_causal and key_padding_mask is None and not wants.need_weights
    if is_causal:
        attn_mask = None  # is_causal says that this mask is the causal one
    batch, *_ = sizes(query, key, wants.batch_first)
    q, k, v = _project(query, key, value, p, heads)
    batch_first = wants.batch_first
    if not batched:
        q, k, v, batch_first = q[None], k[None], v[None], True
    along = 1 if batch_first else 0
    k, v = _longer(k, p.bias_k, wants.add_zero_attn, along), _longer(v, p.bias_v, wants.add_zero_attn, along)
    more = (p.bias_k is not None) + wants.add_zero_attn
    mask = one_mask(key_padding_mask, attn_mask, batch, heads, more)
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
    q, k, v = q.permute(order), k.permute(order), v.permute(order)
    weights: Tensor | None = None
    if wants.need_weights:
        out, weights = _with_weights(q, k, v, mask, wants.dropout_p)
    else:
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask
        out = scaled_dot_product_attention(q, k, v, mask, wants.dropout_p, is_causal)
    out = out.permute(0, 2, 1, 3) if batch_first else out.permute(2, 0, 1, 3)
    out = torch_functional.linear(out.flatten(-2), p.out_weight, p.out_bias)
    if weights is not None and wants.average_attn_weights:
        weights = weights.mean(1)
    if batched:
        return out, weights
    return out[0], None if weights is None else weights[0]


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """out = concat_h(softmax(scale * q_h k_h^T + mask) v_h) W_out^T + b_out; torch.nn.functional's function.

    Args:
        query: (L, batch, E) or (L, E).
        key, value: (S, batch, features) or (S, features). features is E where in_proj_weight is used.
        embed_dim_to_check, num_heads: E, and the number of heads, which divides it.
        in_proj_weight, in_proj_bias: (3 E, E), (3 E,), of query, key and value in this order.
        bias_k, bias_v: (1, 1, E), one more key and value after the others; or both None.
        add_zero_attn: adds one more key and value of zeros at the end.
        dropout_p, training: probability of dropping a weight, in steps of 1/256 on the kernels; only if training.
        out_proj_weight, out_proj_bias: (E, E), (E,).
        key_padding_mask: (batch, S) or (S,); bool (True is not attended to) or floating (added).
        need_weights: also return the weights, as they are after dropout.
        attn_mask: (L, S) or (batch * num_heads, L, S); bool or floating, likewise.
        use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight: (E, features) in place of in_proj_weight.
        static_k, static_v: if given, torch's own function runs.
        average_attn_weights: average the weights over the heads.
        is_causal: a hint that attn_mask is the causal one.

    Returns:
        (L, batch, E) or (L, E); and None, or the weights (batch, L, S), (batch, num_heads, L, S), or these without
        batch. A row without a key gives zeros if need_weights is False, else NaN.

    Raises:
        BackendError: a forced backend cannot run the call.
        Every wrong call raises torch's own error.

    Torch's own function also runs for what :func:`scaled_dot_product_attention` leaves to torch and, on a CPU, for
    calls with weights.

    Saved for backward: query, key, value, their projections, the output of attention and one float a row; with weights,
    the weights.

    Numerics: as for :func:`scaled_dot_product_attention`. With weights, scores are rounded to the inputs' dtype, as
    torch's are.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.2.2.
    """
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    p = Projections(weights, in_proj_bias, bias_k, bias_v, out_proj_weight, out_proj_bias)
    probability = dropout_p if training else 0.0
    wants = Wants(num_heads, add_zero_attn, probability, need_weights, average_attn_weights, is_causal, False)
    reason = why_torch_multi_head(query, key, value, key_padding_mask, attn_mask, p, wants)
    if reason is None and (static_k is not None or static_v is not None):
        reason = "static_k or static_v is given"
    if reason is None and query.shape[-1] != embed_dim_to_check:
        reason = "query is not as wide as embed_dim_to_check"
    if reason is None:
        return multi_head(query, key, value, key_padding_mask, attn_mask, p, wants)
    out = torch_functional.multi_head_attention_forward(
        query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn,
        dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, need_weights, attn_mask,
        use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v,
        average_attn_weights, is_causal,
    )  # fmt: skip
    refuse_if_forced("multi_head_attention_forward", reason, query)
    return out
