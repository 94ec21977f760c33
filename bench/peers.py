"""What an op is measured against: PyTorch's own operators, and the kernels of other packages, by name.

A peer that cannot run here is named all the same: a str in the place of a :class:`Peer` is the reason. Packages that
are optional (``fasttx[peers]``) are imported when a case is built.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = {
    "sdpa[cudnn]": SDPBackend.CUDNN_ATTENTION,
    "sdpa[flash]": SDPBackend.FLASH_ATTENTION,
    "sdpa[efficient]": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa[math]": SDPBackend.MATH,
}
NO_DROPOUT = "has no dropout"


@dataclass(frozen=True)
class Peer:
    """`fn(*inputs)` gives what the op gives; every input is differentiated.

    Attributes:
        compiled: by torch.compile, before it is timed.
        exact: the same in plain operators that keep float64, which says how accurate `fn` is; None where the two
            cannot be compared (a random mask, other numbers).
        early_gradient: the gradient is made in forward, and may be written over an input. Forward without a gradient
            and the whole step are timed then, as what is left for backward says nothing.
    """

    fn: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    compiled: bool = False
    exact: Callable[..., Tensor] | None = None
    early_gradient: bool = False


Peers = dict[str, "Peer | str"]


def wide(x: Tensor) -> Tensor:
    """float32 for what is narrower, as the losses of models do."""
    return x if x.dtype == torch.float64 else x.float()


def written_out(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], *, judged: bool = True) -> Peers:
    """The composition of PyTorch's operators, eager and compiled."""
    exact = fn if judged else None
    return {"eager": Peer(fn, inputs, exact=exact), "torch.compile": Peer(fn, inputs, compiled=True, exact=exact)}


def find(module: str, name: str, device: torch.device | None = None) -> Callable[..., Any] | str:
    """`module.name`, or why it cannot be had: not installed, does not import, or too old.

    Args:
        device: where it has to run, for what is no use on a CPU but in a rehearsal (Triton's interpreter).
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name is not None and (module + ".").startswith(problem.name + "."):
            return f"not installed: {problem.name}"
        return f"{module} does not import: {problem}"
    except Exception as problem:  # whatever another package raises while it is imported
        return f"{module} does not import: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
    if not hasattr(found, name):
        return f"{module} has no {name} in this version"
    if device is not None and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU"
    return getattr(found, name)


# ---------------------------------------------------------------------------------------------------- attention


def _heads_first(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fn(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return call


def _sdpa(backend: SDPBackend, mask: Tensor | None, dropout_p: float, causal: bool) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal)

    return _heads_first(call)


def _eager_attention(mask: Tensor | None, dropout_p: float, causal: bool) -> Callable[..., Tensor]:
    """Attention as transformers' eager path writes it."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            rows, cols = (torch.arange(n, device=q.device) for n in scores.shape[-2:])
            scores = scores.masked_fill(cols > rows[:, None], float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        p = F.dropout(torch.softmax(wide(scores), -1).to(q.dtype), dropout_p)
        return p @ v

    return _heads_first(call)


def _flex(
    rule: Callable[..., Tensor] | None, batch: int, seqlen: int, device: torch.device
) -> Callable[..., Tensor] | str:
    flex_attention = find("torch.nn.attention.flex_attention", "flex_attention")
    if isinstance(flex_attention, str):
        return flex_attention
    block_mask = None
    if rule is not None:
        create: Any = find("torch.nn.attention.flex_attention", "create_block_mask")
        block_mask = create(rule, batch, None, seqlen, seqlen, device=device.type)
    return _heads_first(functools.partial(flex_attention, block_mask=block_mask))


def attention_peers(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, dropout_p: float, causal: bool, eager: bool
) -> Peers:
    """Every SDPA backend and flex_attention, on (batch, seqlen, heads, head_dim); `eager`: written out as well."""
    (batch, seqlen), mask = q.shape[:2], None
    if lengths is not None:
        mask = (torch.arange(seqlen, device=q.device) < lengths[:, None])[:, None, None, :]
    exact = None if dropout_p else _eager_attention(mask, 0.0, causal)
    peers: Peers = {n: Peer(_sdpa(kind, mask, dropout_p, causal), (q, k, v), exact=exact) for n, kind in SDPA.items()}

    def ragged(b: Tensor, h: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return col < lengths[b]  # type: ignore[index]

    def ordered(b: Tensor, h: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return col <= row

    rule = ragged if lengths is not None else ordered if causal else None
    flex = NO_DROPOUT if dropout_p else _flex(rule, batch, seqlen, q.device)
    peers["flex_attention"] = flex if isinstance(flex, str) else Peer(flex, (q, k, v), compiled=True, exact=exact)
    if eager:
        peers |= written_out(_eager_attention(mask, dropout_p, causal), (q, k, v), judged=not dropout_p)
    return peers


def packed_peers(flat: tuple[Tensor, ...], cu_seqlens: Tensor, seqlen: int, *, dropout_p: float) -> Peers:
    """What takes packed tokens: varlen_attn, and flex_attention with one document a sequence. (tokens, heads, dim)."""
    if dropout_p:
        return {"varlen_attn": NO_DROPOUT, "flex_attention[packed]": NO_DROPOUT}
    lengths, total = cu_seqlens.diff().long(), flat[0].shape[0]
    device = cu_seqlens.device
    real = torch.arange(seqlen, device=device) < lengths[:, None]
    at = real.nonzero(as_tuple=True)
    padded = _eager_attention(real[:, None, None, :], 0.0, False)

    def exact(*tensors: Tensor) -> Tensor:
        rows = (x.new_zeros(*real.shape, *x.shape[1:]).index_put(at, x) for x in tensors)
        return padded(*rows)[at]

    peers: Peers = {}
    varlen = find("torch.nn.attention.varlen", "varlen_attn", device)
    if isinstance(varlen, str):
        peers["varlen_attn"] = varlen
    else:
        call = varlen

        def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return call(q, k, v, cu_seqlens, cu_seqlens, seqlen, seqlen)

        peers["varlen_attn"] = Peer(packed, flat, exact=exact)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)

    def same(b: Tensor, h: Tensor, row: Tensor, col: Tensor) -> Tensor:
        return document[row] == document[col]

    flex = _flex(same, 1, total, device)
    if isinstance(flex, str):
        peers["flex_attention[packed]"] = flex
    else:
        one_row = flex

        def documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return one_row(q[None], k[None], v[None])[0]

        peers["flex_attention[packed]"] = Peer(documents, flat, compiled=True, exact=exact)
    return peers


# ----------------------------------------------------------------------------------------------- other packages

LIGER = "liger_kernel.transformers.functional"


def _peer(fn: Callable[..., Any] | str, make: Callable[[Callable[..., Any]], Peer]) -> Peer | str:
    return fn if isinstance(fn, str) else make(fn)


def liger_softmax(x: Tensor, exact: Callable[..., Tensor]) -> Peers:
    fn = find(LIGER, "liger_softmax", x.device)
    return {"liger": _peer(fn, lambda fn: Peer(fn, (x,), exact=exact))}


def liger_layer_norm(
    inputs: tuple[Tensor, ...], eps: float, dropout_p: float, exact: Callable[..., Tensor] | None
) -> Peers:
    """Dropout and the sum are PyTorch's there: Liger has the layer norm alone."""

    def make(fn: Callable[..., Any]) -> Peer:
        def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            z = F.dropout(x, dropout_p) if dropout_p else x
            return fn(z if residual is None else z + residual, weight, bias, eps)

        return Peer(norm, inputs, exact=exact)

    return {"liger": _peer(find(LIGER, "liger_layer_norm", inputs[0].device), make)}


def liger_cross_entropy(logits: Tensor, target: Tensor, smoothing: float, exact: Callable[..., Tensor]) -> Peers:
    def make(fn: Callable[..., Any]) -> Peer:
        def loss(logits: Tensor) -> Tensor:
            return fn(logits, target, ignore_index=-100, label_smoothing=smoothing)

        return Peer(loss, (logits,), exact=exact, early_gradient=True)

    return {"liger": _peer(find(LIGER, "liger_cross_entropy", logits.device), make)}


def vocabulary_losses(inputs: tuple[Tensor, ...], target: Tensor, exact: Callable[..., Tensor]) -> Peers:
    """Losses that take hidden states and the vocabulary's weight; `inputs` are x, weight and perhaps bias."""
    device = target.device

    def torch_own(fn: Callable[..., Any]) -> Peer:
        def loss(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return fn(x, weight, target, linear_bias=bias, ignore_index=-100)

        return Peer(loss, inputs, exact=exact)

    def liger(fn: Callable[..., Any]) -> Peer:
        def loss(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return fn(x, weight, target, bias, ignore_index=-100)

        return Peer(loss, inputs, exact=exact, early_gradient=True)

    def cut(fn: Callable[..., Any]) -> Peer:
        return Peer(lambda x, weight: fn(x, weight, target, ignore_index=-100), inputs, exact=exact)

    cut_fn = find("cut_cross_entropy", "linear_cross_entropy", device)
    return {
        "F.linear_cross_entropy": _peer(find("torch.nn.functional", "linear_cross_entropy"), torch_own),
        "liger": _peer(find(LIGER, "liger_fused_linear_cross_entropy", device), liger),
        "cut-cross-entropy": "takes no bias" if len(inputs) > 2 else _peer(cut_fn, cut),
    }
