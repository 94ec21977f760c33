"""Attention for transformers, through its own registries: ``attn_implementation="fasttx"``.

Importing this module registers the attention function and its mask function.  Both are needed: without a mask
function of that name transformers drops the padding mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ...functional._softmax import _masked_softmax
from ...functional.attention.layouts import attention_packed, attention_padded
from ...ops.attention.masks import with_infinities
from ...ops.checks import is_index
from ..options import ModulePatch, Options
from .masks import as_bias, checked_position_bias, fasttx_mask, with_position_bias

IMPLEMENTATION = "fasttx"

UNSUPPORTED = frozenset(("softcap", "s_aux", "sinks", "head_mask", "block_mask", "block_indices", "indices"))
"""Arguments of other models' attention that change the result and are not implemented: only None is allowed."""

_UNASKED = Options()  # of a module that nobody patched: attn_implementation="fasttx" alone


def _visible_weights(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    window: tuple[int, int],
    scale: float,
    dropout_p: float,
    backend: str | None,
) -> Tensor:
    """softmax(scale QK' + position_bias + bias) after dropout, (batch, heads, query length, key length)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3))
    if position_bias is not None:  # apart from the mask: softmax gives masks no gradient
        scores, scale = (scores * scale + position_bias).to(scores.dtype), 1.0
    if max(window) >= 0:  # there is no mask then, or a bool one of keys
        left, right = window
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        seen = seen.triu(-left) if left >= 0 else seen
        seen = seen.tril(right) if right >= 0 else seen
        bias = seen[None, None] if bias is None else seen & bias
    elif bias is not None and bias.is_floating_point():
        bias = with_infinities(bias)
    return _masked_softmax(scores, mask=bias, scale=scale, dropout_p=dropout_p, backend=backend)


def fasttx_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """out = dropout(softmax(scaling QK' + position_bias + mask)) V, as transformers calls it.

    Args:
        module: the attention module; its ``is_causal`` holds where the argument is None.
        query: (batch, num_heads, seqlen_q, head_dim), read by strides.
        key, value: (batch, num_heads_k, seqlen_k, head_dim); seqlen_k differs from seqlen_q with a cache and in cross
            attention, num_heads is a multiple of num_heads_k.
        attention_mask: None, (batch or 1, seqlen_k) bool, or four-dimensional bool or floating.
        dropout: probability; transformers passes 0 outside training.
        scaling: multiplies QK'; head_dim ** -0.5 by default.
        is_causal: used where there is no mask and more than one query, as transformers' sdpa does; aligned top left.
        position_bias: None or floating (batch, num_heads, seqlen_q, seqlen_k) or 1 in any dim, of a packed batch
            (sequences, num_heads, max_length_q, max_length_k), indexed within each sequence. It gets a gradient.
        **kwargs: ``output_attentions`` (or ``module.config.output_attentions``) returns the weights;
            ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``, ``max_length_k`` mark a packed batch of one row.
            ``sliding_window`` n: a query sees keys less than n away (before it alone where causal); with a
            four-dimensional mask or a cache the mask alone tells.

    Returns:
        out (batch, seqlen_q, num_heads, head_dim), contiguous; the weights after dropout
        (batch, num_heads, seqlen_q, seqlen_k) if they were asked for, else None.  A fully masked row gives zeros.

    Raises:
        ValueError: a mask of another form; an argument that would change the result and is not supported; weights of a
            packed batch.
    """
    rows = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return attention_of_rows(module, *rows, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs)


def attention_of_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`fasttx_attention` of heads as a product gives them: (batch, seqlen, heads, head_dim), or packed
    (total tokens, heads, head_dim), which is also the layout of the result."""
    for name in kwargs:
        if name in UNSUPPORTED and kwargs[name] is not None:
            raise ValueError(
                f"{name}: got {type(kwargs[name]).__name__}; allowed is None, as attn_implementation='fasttx' does not "
                "support it: use attn_implementation='sdpa' or 'eager' for this model"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    asked: ModulePatch | None = getattr(module, "_fasttx", None)
    options = _UNASKED if asked is None else asked.options
    window = _window(kwargs.get("sliding_window"), causal)
    return _attend(
        module, query, key, value, attention_mask, position_bias, dropout, scale, causal, window, options, kwargs
    )


def _window(sliding_window: Any, causal: bool) -> tuple[int, int]:
    """Keys that are visible on the left and on the right, -1 for all; None and 0 stand for no window."""
    if not sliding_window:
        return (-1, 0) if causal else (-1, -1)
    left = int(sliding_window) - 1
    if left < 0:
        raise ValueError(f"sliding_window: got {sliding_window!r}; allowed are ints from 1 and None")
    return left, 0 if causal else left


def refuse_lengths_alone(seq_lens: Any, seqlen: int) -> None:
    """ValueError if `seq_lens` says that there is padding, for a call that got no mask and runs padded."""
    if any(length != seqlen for length in seq_lens):
        raise ValueError(
            "seq_lens: got lengths without an attention_mask; allowed are lengths alone where fasttx.patch made an "
            f"encoder run on real tokens only, under attn_implementation={IMPLEMENTATION!r} and outside the capture of "
            "a CUDA graph; pass the attention_mask too"
        )


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None,
    dropout: float,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    options: Options,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    weights_wanted = kwargs.get("output_attentions") or getattr(
        getattr(module, "config", None), "output_attentions", False
    )
    if kwargs.get("cu_seq_lens_q") is not None:
        if weights_wanted:
            raise ValueError(
                "output_attentions: got True with a packed batch (cu_seq_lens_q), whose weights have no rectangular "
                "shape; allowed is False, or a padded batch with attention_mask"
            )
        return _packed(query, key, value, attention_mask, position_bias, dropout, scale, window, options, kwargs), None
    (batch, rows, heads, _), keys = query.shape, key.shape[1]
    scores = (batch, heads, rows, keys)
    if attention_mask is None and kwargs.get("seq_lens") is not None:
        refuse_lengths_alone(kwargs["seq_lens"], keys)
    causal = rows > 1 and attention_mask is None and causal
    if rows != keys or (attention_mask is not None and attention_mask.dim() != 2):
        window = (-1, -1)  # as far as there is one, the mask knows it, and what transformers excepts from it
    window = (window[0], 0 if causal else window[0])
    bias = as_bias(attention_mask, scores)
    if position_bias is not None:
        position_bias = checked_position_bias(position_bias, scores)
    if weights_wanted:
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        weights = _visible_weights(query, key, bias, position_bias, window, scale, dropout, options.forced)
        groups = query.shape[1] // value.shape[1]
        out = torch.matmul(weights, value.repeat_interleave(groups, dim=1) if groups > 1 else value)
        return out.transpose(1, 2).contiguous(), weights
    out = attention_padded(
        query,
        key,
        value,
        attn_bias=bias if position_bias is None else with_position_bias(bias, position_bias),
        dropout_p=dropout,
        window=window,
        softmax_scale=scale,
        backend=options.forced,
        deterministic=options.deterministic,
    )
    return out, None


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    position_bias: Tensor | None,
    dropout_p: float,
    scale: float,
    window: tuple[int, int],
    options: Options,
    kwargs: dict[str, Any],
) -> Tensor:
    """Several sequences in one row: query, key, value ([1,] total tokens, heads, head_dim)."""
    if kwargs.get("cu_seq_lens_k") is None or kwargs.get("max_length_q") is None or kwargs.get("max_length_k") is None:
        given = [name for name in ("cu_seq_lens_k", "max_length_q", "max_length_k") if kwargs.get(name) is None]
        raise ValueError(f"{', '.join(given)}: got None; allowed is a value, as cu_seq_lens_q is given")
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if not isinstance(kwargs[name], Tensor):
            raise TypeError(f"{name}: got {type(kwargs[name]).__name__}; allowed is an integer tensor")
    for name in ("max_length_q", "max_length_k"):
        if type(kwargs[name]) is not int and not is_index(kwargs[name]):
            raise TypeError(f"{name}: got {type(kwargs[name]).__name__}; allowed is an int")
    batched = query.dim() == 4
    if batched:
        if query.shape[0] != 1:
            raise ValueError(f"cu_seq_lens_q: got a batch of {query.shape[0]} rows; allowed is 1, as in a packed batch")
        # not query[0], whose backward fills a tensor with zeros and copies into it
        query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)
    if mask is not None:
        raise ValueError(
            "attention_mask: got one with cu_seq_lens_q; allowed is None, as lengths describe a packed batch"
        )
    out: Tensor = attention_packed(
        query,
        key,
        value,
        kwargs["cu_seq_lens_q"].to(torch.int32),
        kwargs["cu_seq_lens_k"].to(torch.int32),
        int(kwargs["max_length_q"]),
        int(kwargs["max_length_k"]),
        dropout_p=dropout_p,
        attn_bias=position_bias,
        window_size=window,
        scale=scale,
        backend=options.forced,
        deterministic=options.deterministic,
        sure=True,
    )
    return out.unsqueeze(0) if batched else out


AttentionInterface.register(IMPLEMENTATION, fasttx_attention)
AttentionMaskInterface.register(IMPLEMENTATION, fasttx_mask)
