"""unpad keeps the real tokens of a padded batch, one sequence after the other; repad puts them back.

Each direction gathers whole rows and is the other's gradient. Every row is written at most once, so nothing is added up
and the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.checks import described, values_are_known, wrong


class _TakeRows(torch.autograd.Function):
    """x (n, ...) -> x[indices]; the indices are distinct. Saves the indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return put_rows(dout, ctx.saved_tensors[0], ctx.n_rows), None


class _PutRows(torch.autograd.Function):
    """x (m, ...) -> out (n_rows, ...), out[indices] = x and 0 elsewhere. Saves the indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, n_rows: int) -> Tensor:
        ctx.save_for_backward(indices)
        out = x.new_zeros((n_rows, *x.shape[1:])).index_copy_(0, indices, x)
        return out.detach()  # in torch 2.11's graphs a tensor that was written in place has no gradient

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        return take_rows(dout, ctx.saved_tensors[0]), None, None


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x[indices] along the first dim, for distinct indices: (n, ...), int64 (m,) -> (m, ...)."""
    return _TakeRows.apply(x, indices)


def put_rows(x: Tensor, indices: Tensor, n_rows: int) -> Tensor:
    """Zeros (n_rows, ...) with x at the distinct indices: (m, ...), int64 (m,) -> (n_rows, ...)."""
    return _PutRows.apply(x, indices, n_rows)


class Layout(NamedTuple):
    """Where the tokens of a packed batch come from.

    Attributes:
        indices: int64 (total,), row of each token in the flattened (batch * seqlen) padded batch.
        cu_seqlens: int32 (batch + 1,), where each sequence starts in the packed one.
        max_seqlen: the longest sequence.
        total: number of tokens.
    """

    indices: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    total: int


def first_tokens(lengths: Sequence[int] | Tensor, seqlen: int, device: torch.device | None = None) -> Tensor:
    """bool (batch, seqlen): True at the first lengths[b] positions of row b; `device` defaults to the CPU."""
    # torch.tensor and not as_tensor, which makes constants of the ints while a graph is compiled
    ends = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, dtype=torch.int64)
    return torch.arange(seqlen, device=device) < ends.to(device, non_blocking=True)[:, None]


def layout_of(real: Tensor, lengths: Sequence[int], counts: Tensor | None = None) -> Layout:
    """The layout of a batch whose real tokens are the True elements of `real`, bool (batch, seqlen).

    Args:
        real: any form: padding on the right, on the left, holes.
        lengths: number of real tokens of each row. The host must know it to allocate; nothing else is waited for.
        counts: the same as an int32 tensor on real's device, if there is one.
    """
    if counts is None:
        counts = torch.tensor(lengths, dtype=torch.int32).to(real.device, non_blocking=True)
    total = sum(lengths)
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    indices = torch.nonzero_static(real.reshape(-1), size=total).view(total)
    return Layout(indices, cu_seqlens, max((0, *lengths)), total)


def unpad(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Packs the real tokens of a padded batch: packed[i] = hidden.flatten(0, 1)[indices[i]].

    Args:
        hidden: (batch, seqlen, ...), any dtype.
        mask: (batch, seqlen), bool or integer. True, or a number other than 0, marks a real token. Padding may be
            anywhere.

    Returns:
        packed (total, ...), row by row; indices int64 (total,) into the flattened batch; cu_seqlens int32 (batch + 1,),
        where each sequence starts; max_seqlen, the length of the longest. :func:`attention_varlen` and :func:`repad`
        take these.

    Raises:
        TypeError: hidden or mask is not a Tensor.
        ValueError: mask is floating, on another device or on meta, or has not hidden's first two dims.

    Saved for backward: indices. On a GPU the host waits once for the number of tokens.
    """
    for name, value in (("hidden", hidden), ("mask", mask)):
        if not isinstance(value, Tensor):
            raise TypeError(wrong(f"unpad: {name}", described(value), "a Tensor"))
    if hidden.dim() < 2:
        raise ValueError(wrong("unpad: hidden's shape", tuple(hidden.shape), "(batch, seqlen, ...)"))
    if mask.shape != hidden.shape[:2]:
        allowed = f"hidden's (batch, seqlen), {tuple(hidden.shape[:2])}"
        raise ValueError(wrong("unpad: mask's shape", tuple(mask.shape), allowed))
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(wrong("unpad: mask's dtype", mask.dtype, "bool or an integer (not 0 = real token)"))
    if mask.device != hidden.device:
        raise ValueError(wrong("unpad: mask's device", mask.device, f"hidden's, {hidden.device}"))
    if not (values_are_known(mask) or torch.compiler.is_compiling()):
        without = "a meta tensor" if mask.is_meta else "a Tensor whose values cannot be read"
        raise ValueError(wrong("unpad: mask", without, "one with values, on which the number of tokens hangs"))
    real = mask if mask.dtype == torch.bool else mask != 0
    counts = real.sum(-1, dtype=torch.int32)
    layout = layout_of(real, counts.tolist(), counts)
    packed = take_rows(hidden.flatten(0, 1), layout.indices)
    return packed, layout.indices, layout.cu_seqlens, layout.max_seqlen


def repad(packed: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Puts packed tokens back into padded rows, with 0 at padding; the inverse of :func:`unpad`.

    hidden.flatten(0, 1)[indices[i]] = packed[i] for the i-th token.

    Args:
        packed: (total, ...), any dtype.
        indices: int64 (total,), as unpad returned them: distinct, in [0, batch * seqlen).
        batch, seqlen: the padded shape.

    Returns:
        (batch, seqlen, ...).

    Raises:
        TypeError: packed or indices is not a Tensor; batch or seqlen is not an int.
        ValueError: indices is not int64 (total,), is on another device or, on a CPU, out of range; batch or seqlen is
            negative, or their product is smaller than total.

    Saved for backward: indices.
    """
    for name, value in (("packed", packed), ("indices", indices)):
        if not isinstance(value, Tensor):
            raise TypeError(wrong(f"repad: {name}", described(value), "a Tensor"))
    for name, size in (("batch", batch), ("seqlen", seqlen)):
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise TypeError(wrong(f"repad: {name}", repr(size), "an int"))
        if size < 0:
            raise ValueError(wrong(f"repad: {name}", size, "0 or more"))
    if packed.dim() < 1 or indices.dtype != torch.int64 or indices.shape != packed.shape[:1]:
        given = f"{indices.dtype} of shape {tuple(indices.shape)}"
        raise ValueError(wrong("repad: indices", given, f"an int64 for each row of packed, {tuple(packed.shape)}"))
    if indices.device != packed.device:
        raise ValueError(wrong("repad: indices' device", indices.device, f"packed's, {packed.device}"))
    if batch * seqlen < packed.shape[0]:
        raise ValueError(wrong("repad: seqlen", seqlen, f"room for the {packed.shape[0]} rows of packed"))
    try:
        return put_rows(packed, indices, batch * seqlen).unflatten(0, (batch, seqlen))
    except IndexError as problem:
        low, high = (int(bound) for bound in indices.aminmax())
        raise ValueError(wrong("repad: indices", f"{low} to {high}", f"0 to {batch * seqlen - 1}")) from problem
