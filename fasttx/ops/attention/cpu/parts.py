"""The rectangles into which a call of attention is cut on a CPU, and the masks that PyTorch's kernels take.

A part is the whole padded batch at once, or one sequence where lengths differ (packed sequences, seqused_k, a bool key
mask that is a prefix), so that masked keys cost nothing.  Forward and backward must cut alike: dropout draws its bytes
part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...forms import KEY_MASK, SLICED, WHOLE
from ..call import AttentionCall
from ..masks import with_infinities

INF = float("inf")


SLICING_PAYS = 2000
"""Masked keys times head_dim a sequence, from which a call for each sequence is faster, measured."""


def worth_slicing(q: Tensor, masked: int) -> bool:
    """Whether one flash call a sequence of q beats one call with a mask: `masked` keys saved in all."""
    saved = masked * q.shape[-1] // max(q.shape[0], 1)
    return KEY_MASK.takes(q, SLICED if saved >= SLICING_PAYS else WHOLE, saved) == SLICED


class Part(NamedTuple):
    """One rectangle of the batch: sequences `batch` (padded) or one packed sequence, and its share of the bias."""

    batch: slice
    rows: slice
    keys: slice
    bias: Tensor | None  # additive or bool, (batch | 1, heads | 1, rows | 1, keys)
    causal: bool  # key j visible iff j <= i, without a bias that says so
    sequences: slice  # which of the call's, packed or padded

    def of(self, x: Tensor, at: slice) -> Tensor:
        """(batch, len(at), heads, head_dim) of a padded or packed tensor."""
        return x[at].unsqueeze(0) if x.dim() == 3 else x[self.batch, at]

    def of_bias(self, dbias: Tensor) -> Tensor:
        """Where the gradient of its share of the bias belongs, in that of the whole."""
        m, n = self.rows.stop - self.rows.start, self.keys.stop - self.keys.start
        return dbias[self.sequences if dbias.shape[0] > 1 else slice(None), :, :m, :n]

    def of_lse(self, softmax_lse: Tensor) -> Tensor:
        """(batch, heads, rows)."""
        return softmax_lse[:, self.rows].unsqueeze(0) if softmax_lse.dim() == 2 else softmax_lse[self.batch]


def _prefix_lengths(mask: Tensor, batch: int) -> list[int] | None:
    """Lengths of a bool key mask (batch | 1, 1, 1, seqlen_k) that is a prefix of each sequence."""
    keys = mask[:, 0, 0]
    lengths = keys.sum(-1)
    if not torch.equal(keys, torch.arange(keys.shape[1]) < lengths[:, None]):
        return None
    found = lengths.tolist()
    return found * batch if len(found) < batch else found


def window(rows: int, keys: int, shift: int, left: int, right: int) -> Tensor:
    distance = torch.arange(keys) - (torch.arange(rows)[:, None] + shift)
    seen = torch.ones((), dtype=torch.bool)
    if left >= 0:
        seen = seen & (distance >= -left)
    if right >= 0:
        seen = seen & (distance <= right)
    return seen[None, None]


def _part(
    call: AttentionCall,
    batch: slice,
    rows: slice,
    keys: slice,
    bias: Tensor | None,
    shift: int,
    packed: int | None = None,
) -> Part:
    """Decides whether the window is the flash kernel's own causal flag or a mask."""
    left, right = call.window_left, call.window_right
    causal = left < 0 and right == 0 and shift == 0
    if not causal and (left >= 0 or right >= 0):
        seen = window(rows.stop - rows.start, keys.stop - keys.start, shift, left, right)
        if bias is None:
            bias = seen
        else:
            bias = bias & seen if bias.dtype == torch.bool else widened(bias).masked_fill(~seen, -INF)
    return Part(batch, rows, keys, bias, causal, batch if packed is None else slice(packed, packed + 1))


def parts(q: Tensor, k: Tensor, call: AttentionCall) -> Iterator[Part]:
    bias = call.attn_bias
    if call.cu_seqlens_q is not None and call.cu_seqlens_k is not None:
        starts_q, starts_k = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
        for b in range(len(starts_q) - 1):
            rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
            m, n = rows.stop - rows.start, keys.stop - keys.start
            own = None if bias is None else bias[b : b + 1] if bias.shape[0] > 1 else bias
            if own is not None:
                own = own.expand(-1, -1, -1, call.max_seqlen_k)[:, :, :m, :n]
            yield _part(call, slice(0, 1), rows, keys, own, n - m, b)
        return
    batch, m, n = q.shape[0], q.shape[1], k.shape[1]
    lengths = None if call.seqused_k is None else call.seqused_k.tolist()
    given = bias
    if lengths is None and bias is not None and bias.dtype == torch.bool and bias.shape[1] == bias.shape[2] == 1:
        if bias.shape[3] == n:
            lengths = _prefix_lengths(bias, batch)
            bias = bias if lengths is None else None
    if bias is not None and bias.shape[3] < n:
        bias = bias.expand(-1, -1, -1, n)
    if lengths is None or min(lengths, default=n) == n:
        yield _part(call, slice(0, batch), slice(0, m), slice(0, n), bias, 0)
        return
    if call.rng_state is None and not worth_slicing(q, batch * n - sum(lengths)):
        if call.seqused_k is not None:
            used = torch.arange(n) < call.seqused_k[:, None, None, None]
            if given is None:
                given = used
            else:
                given = given & used if given.dtype == torch.bool else widened(given).masked_fill(~used, -INF)
        yield _part(call, slice(0, batch), slice(0, m), slice(0, n), given, 0)
        return
    for b, length in enumerate(lengths):
        own = None if bias is None else (bias[b : b + 1] if bias.shape[0] > 1 else bias)[..., :length]
        yield _part(call, slice(b, b + 1), slice(0, m), slice(0, length), own, 0)


def widened(bias: Tensor) -> Tensor:
    """A floating mask in float32, in which the lowest number of float16 would hide nothing."""
    return with_infinities(bias).float() if bias.dtype == torch.float16 else bias.float()


def additive(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias as the kernels of PyTorch take it: added to the scores, in `dtype` or float32."""
    if bias is None or bias.dtype == dtype:
        return bias
    if bias.dtype == torch.bool:
        return torch.zeros(bias.shape, dtype=dtype).masked_fill_(~bias, -INF)
    return widened(bias)
