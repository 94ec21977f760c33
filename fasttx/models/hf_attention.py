"""Attention for transformers, through its own registries: ``attn_implementation="fasttx"``.

Importing this module registers the attention function and its mask function.  Both are needed: without a mask
function of that name transformers drops the padding mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from ..functional.attention_layouts import attention_packed, attention_padded
from ..functional.probabilities import masked_softmax_on
from ..ops.arguments import is_index
from ..ops.attention_masks import with_infinities
from .options import ModulePatch, Options

NAME = "fasttx"

UNSUPPORTED = frozenset(("softcap", "position_bias", "s_aux", "sinks", "head_mask", "block_mask"))
"""Arguments of other models' attention that change the result and are not implemented: only None is allowed."""

PASS_ON_THEIR_WINDOW = frozenset(("modernbert",))
"""``model_type`` of encoders whose local layers call attention with ``sliding_window``, so that no mask of every pair
of tokens need say the same."""

_UNASKED = Options()  # of a module that nobody patched: attn_implementation="fasttx" alone


def fasttx_mask(**arguments: Any) -> Tensor | None:
    """The mask that :func:`fasttx_attention` gets, from what transformers knows about it.

    A padding mask alone, (batch, kv_length) bool, is returned as it is: it stays two-dimensional, and nothing
    depends on its values, so that ``torch.compile(fullgraph=True)`` works. So it is beside the window of a model whose
    layers pass that on. A causal or composed mask is made by transformers' sdpa_mask.
    """
    mask = arguments.get("attention_mask")
    windowed = arguments.get("local_size") is not None
    padding_only = not arguments.get("use_vmap", False) and (
        arguments.get("mask_function") is bidirectional_mask_function
        if not windowed
        else getattr(arguments.get("config"), "model_type", None) in PASS_ON_THEIR_WINDOW
    )
    if padding_only and mask is None:
        return None
    if padding_only and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[-1] == arguments["kv_length"]:
        return mask
    return sdpa_mask(**arguments)


def _bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """`mask` as the four-dimensional attn_bias of fasttx's attention."""
    if mask is None:
        return None
    batch, heads, query_length, _ = query.shape
    key_length = key.shape[2]
    if mask.dim() == 2:
        if mask.shape != (batch, key_length):
            raise ValueError(
                f"attention_mask: got shape {tuple(mask.shape)}; a two-dimensional mask must be (batch, key length) = "
                f"({batch}, {key_length})"
            )
        return (mask if mask.dtype == torch.bool else mask != 0).view(batch, 1, 1, key_length)
    if mask.dim() != 4:
        raise ValueError(
            f"attention_mask: got {mask.dim()} dimensions; allowed are (batch, key length) and "
            "(batch, heads, query length, key length), each of which but the last may be 1"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attention_mask: got dtype {mask.dtype}; a four-dimensional mask is bool (True = attend) or floating "
            "(added to the scores)"
        )
    b, h, rows, columns = mask.shape
    if (
        (b != 1 and b != batch)
        or (h != 1 and h != heads)
        or (rows != 1 and rows != query_length)
        or (columns != 1 and columns != key_length)
    ):
        raise ValueError(
            f"attention_mask: got shape {tuple(mask.shape)}; a four-dimensional mask must be (batch, heads, query "
            f"length, key length) = ({batch}, {heads}, {query_length}, {key_length}) or 1 in any dimension"
        )
    return mask


def _visible_weights(
    query: Tensor, key: Tensor, bias: Tensor | None, window: tuple[int, int], scale: float, dropout_p: float,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """softmax(scale QK' + bias) after dropout, (batch, heads, query length, key length)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3))
    if max(window) >= 0:  # there is no mask then, or a bool one of keys
        left, right = window
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        seen = seen.triu(-left) if left >= 0 else seen
        seen = seen.tril(right) if right >= 0 else seen
        bias = seen[None, None] if bias is None else seen & bias
    elif bias is not None and bias.is_floating_point():
        bias = with_infinities(bias)
    return masked_softmax_on(backend, scores, mask=bias, scale=scale, dropout_p=dropout_p)


def fasttx_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """out = dropout(softmax(scaling QK' + mask)) V, as transformers calls it.

    Args:
        module: the attention module; its ``is_causal`` holds where the argument is None.
        query: (batch, num_heads, seqlen_q, head_dim), read by strides.
        key, value: (batch, num_heads_k, seqlen_k, head_dim); seqlen_k differs from seqlen_q with a cache and in cross
            attention, num_heads is a multiple of num_heads_k.
        attention_mask: None, (batch, seqlen_k) bool, or four-dimensional bool or floating.
        dropout: probability; transformers passes 0 outside training.
        scaling: multiplies QK'; head_dim ** -0.5 by default.
        is_causal: used where there is no mask and more than one query, as transformers' sdpa does; aligned top left.
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
    for name in kwargs:
        if name in UNSUPPORTED and kwargs[name] is not None:
            raise ValueError(
                f"{name}: got {type(kwargs[name]).__name__}; attn_implementation='fasttx' does not support it "
                "(only None is allowed); use attn_implementation='sdpa' or 'eager' for this model"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    asked: ModulePatch | None = getattr(module, "_fasttx", None)
    options = _UNASKED if asked is None else asked.options
    window = _window(kwargs.get("sliding_window"), causal)
    return _attend(module, query, key, value, attention_mask, dropout, scale, causal, window, options, kwargs)


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
            "seq_lens: got them without an attention_mask; allowed where fasttx.patch made an encoder run on real "
            f"tokens only, under attn_implementation={NAME!r} and outside the capture of a CUDA graph; pass the "
            "attention_mask besides"
        )


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
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
        return _packed(query, key, value, attention_mask, dropout, scale, window, options, kwargs), None
    if attention_mask is None and kwargs.get("seq_lens") is not None:
        refuse_lengths_alone(kwargs["seq_lens"], key.shape[2])
    causal = query.shape[2] > 1 and attention_mask is None and causal
    if query.shape[2] != key.shape[2] or (attention_mask is not None and attention_mask.dim() != 2):
        window = (-1, -1)  # as far as there is one, the mask knows it, and what transformers excepts from it
    window = (window[0], 0 if causal else window[0])
    bias = _bias(attention_mask, query, key)
    if weights_wanted:
        weights = _visible_weights(query, key, bias, window, scale, dropout, options.forced)
        groups = query.shape[1] // value.shape[1]
        out = torch.matmul(weights, value.repeat_interleave(groups, dim=1) if groups > 1 else value)
        return out.transpose(1, 2).contiguous(), weights
    out = attention_padded(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_bias=bias,
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
    dropout_p: float,
    scale: float,
    window: tuple[int, int],
    options: Options,
    kwargs: dict[str, Any],
) -> Tensor:
    """Several sequences in one row: query, key, value (1, heads, total tokens, head_dim)."""
    given = [name for name in ("cu_seq_lens_k", "max_length_q", "max_length_k") if kwargs.get(name) is None]
    if given:
        raise ValueError(f"{', '.join(given)}: got None; required together with cu_seq_lens_q")
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if not isinstance(kwargs[name], Tensor):
            raise TypeError(f"{name}: got {type(kwargs[name]).__name__}; allowed is an integer tensor")
    for name in ("max_length_q", "max_length_k"):
        if not is_index(kwargs[name]):
            raise TypeError(f"{name}: got {type(kwargs[name]).__name__}; allowed is an int")
    if query.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q: the batch has {query.shape[0]} rows; a packed batch has exactly 1")
    if mask is not None:
        raise ValueError("attention_mask: a packed batch (cu_seq_lens_q) is described by its lengths; pass no mask")
    return attention_packed(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        kwargs["cu_seq_lens_q"].to(torch.int32),
        kwargs["cu_seq_lens_k"].to(torch.int32),
        int(kwargs["max_length_q"]),
        int(kwargs["max_length_k"]),
        dropout_p=dropout_p,
        window_size=window,
        scale=scale,
        backend=options.forced,
        deterministic=options.deterministic,
    )[None]


AttentionInterface.register(NAME, fasttx_attention)
AttentionMaskInterface.register(NAME, fasttx_mask)
