"""Packed sequences without a mask of their own on a CPU: what carries a padding-free model through a step.

Without dropout every run of neighbouring sequences of equal lengths is one call of PyTorch's flash kernel, on views.  A
call costs less than ten microseconds beside its arithmetic, so that sequences of different lengths are not worth a
copy.  The matrix products that dropout needs are some twenty calls a sequence: there short sequences of similar
lengths are gathered into one padded batch, whose padding is masked and dropped again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import AttentionCall
from . import chunks
from .chunks import Chunks
from .flash import FLASH, FLASH_BACKWARD
from .parts import INF, Part

_PADDING = 5_000
"""Padded scores that cost as much as the calls a group saves by one more sequence, at a head_dim of 32."""


class Lengths(NamedTuple):
    """Lengths of the sequences; those of q and of k are the same where `causal`."""

    q: list[int]
    k: list[int]
    causal: bool


def packed_lengths(q: Tensor, k: Tensor, call: AttentionCall) -> Lengths | None:
    """None unless nothing but the lengths, and perhaps a causal flag, hides a key, and every token has a sequence."""
    if (
        call.cu_seqlens_q is None
        or call.cu_seqlens_k is None
        or call.attn_bias is not None
        or call.window_left >= 0
        or call.window_right > 0
    ):
        return None
    starts_q = call.cu_seqlens_q.tolist()
    starts_k = starts_q if call.cu_seqlens_k is call.cu_seqlens_q else call.cu_seqlens_k.tolist()
    if starts_q[0] or starts_k[0] or starts_q[-1] != q.shape[0] or starts_k[-1] != k.shape[0]:
        return None
    lengths_q, lengths_k = ([b - a for a, b in itertools.pairwise(starts)] for starts in (starts_q, starts_k))
    causal = call.window_right == 0
    return None if causal and lengths_q != lengths_k else Lengths(lengths_q, lengths_k, causal)


# ------------------------------------------------------------------------------------------------- by the flash kernel


def _runs(lengths: Lengths) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(how many neighbouring sequences, their length) in q and in k."""
    runs = [(len(list(run)), m, n) for (m, n), run in itertools.groupby(zip(lengths.q, lengths.k, strict=True))]
    return [(c, m) for c, m, _ in runs], [(c, n) for c, _, n in runs]


def _views(x: Tensor, runs: list[tuple[int, int]]) -> list[Tensor]:
    """(1, heads, total, ...) as (count, heads, length, ...) of each run."""
    pieces = x.split([count * length for count, length in runs], 2)
    return [
        piece if run[0] == 1 else piece[0].unflatten(1, run).transpose(0, 1)
        for piece, run in zip(pieces, runs, strict=True)
    ]


def _tokens(x: Tensor, runs: list[tuple[int, int]]) -> list[Tensor]:
    return _views(x.transpose(0, 1).unsqueeze(0), runs)


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: AttentionCall, lengths: Lengths
) -> None:
    """Writes out and softmax_lse."""
    runs_q, runs_k = _runs(lengths)
    outs, lses = _tokens(out, runs_q), _views(lse.unsqueeze(0), runs_q)
    inputs = (_tokens(q, runs_q), _tokens(k, runs_k), _tokens(v, runs_k))
    for q1, k1, v1, out1, lse1 in zip(*inputs, outs, lses, strict=True):
        if q1.shape[2] and k1.shape[2]:
            found = FLASH(q1, k1, v1, 0.0, lengths.causal, scale=call.softmax_scale)
            out1.copy_(found[0])
            lse1.copy_(found[1])
        else:
            out1.zero_()
            lse1.fill_(-INF)


def flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
    lengths: Lengths,
) -> None:
    """Writes dq, dk and dv."""
    runs_q, runs_k = _runs(lengths)
    where = (runs_q, runs_k, runs_k)
    inputs = [_tokens(x, at) for x, at in zip((dout, q, k, v, out), (runs_q, *where, runs_q), strict=True)]
    into = zip(*(_tokens(x, at) for x, at in zip(grads, where, strict=True)), strict=True)
    for *given, lse1, grads1 in zip(*inputs, _views(lse.unsqueeze(0), runs_q), into, strict=True):
        if given[1].shape[2] and given[2].shape[2]:
            found = FLASH_BACKWARD(*given, lse1, 0.0, lengths.causal, scale=call.softmax_scale)
            for grad1, found1 in zip(grads1, found, strict=True):
                grad1.copy_(found1)
        else:
            for grad1 in grads1:
                grad1.zero_()


# -------------------------------------------------------------------------------------------- by products, with dropout


class _Rows:
    """Tokens of some sequences in a tensor (total, heads, head_dim), as (count, longest, heads, head_dim)."""

    def __init__(self, starts: list[int], lengths: list[int]) -> None:
        self.shape = (len(lengths), max(lengths))
        at = slice(starts[0], starts[0] + lengths[0])
        self.view = at if len(lengths) == 1 else None
        if self.view is None:
            first, length, row = torch.tensor(starts), torch.tensor(lengths), torch.arange(self.shape[1])
            self.real = row < length[:, None]
            tokens = first[:, None] + torch.minimum(row, length[:, None] - 1)  # past the end: the last one again
            self.index, self.tokens = tokens.flatten(), tokens[self.real]

    def of(self, x: Tensor) -> Tensor:
        return x[self.view].unsqueeze(0) if self.view else x.index_select(0, self.index).view(*self.shape, *x.shape[1:])

    def zero_past(self, x: Tensor) -> Tensor:
        return x if self.view else x.masked_fill_(~self.real[:, :, None, None], 0.0)

    def room(self, x: Tensor) -> Tensor:
        """Where the rows of x are to be computed: x itself, or memory that `put` brings there."""
        return x[self.view].unsqueeze(0) if self.view else x.new_empty(*self.shape, *x.shape[1:])

    def put(self, x: Tensor, room: Tensor) -> None:
        if not self.view:
            x.index_copy_(0, self.tokens, room[self.real])


def _groups(q: Tensor, lengths: Lengths) -> Iterator[tuple[_Rows, _Rows, Part]]:
    """Sequences with rows and keys, those of similar lengths together: the same order in forward and backward."""
    # groups are copied, and the copies stay in the cache; wide heads copy more and save fewer calls for it
    heads, wide = q.shape[1], (max(q.shape[2], 32) / 32) ** 2
    most_padding, most = _PADDING / wide / heads, chunks.CHUNK / 4 / wide / heads
    starts_q, starts_k = ([0, *itertools.accumulate(x)] for x in (lengths.q, lengths.k))
    members: list[int] = []
    m = n = 0

    def group() -> tuple[_Rows, _Rows, Part]:
        rows = _Rows([starts_q[b] for b in members], [lengths.q[b] for b in members])
        keys = _Rows([starts_k[b] for b in members], [lengths.k[b] for b in members])
        bias = None
        if keys.view is None and not bool(keys.real.all()):
            bias = keys.real[:, None, None, :]
        return (
            rows,
            keys,
            Part(slice(0, len(members)), slice(0, m), slice(0, n), bias, lengths.causal, slice(0, len(members))),
        )

    whole = [b for b in range(len(lengths.q)) if lengths.q[b] and lengths.k[b]]
    for b in sorted(whole, key=lambda b: (-lengths.q[b] * lengths.k[b], b)):  # the largest buffers first
        wider, longer = max(m, lengths.q[b]), max(n, lengths.k[b])
        padding = len(members) * (wider * longer - m * n) + wider * longer - lengths.q[b] * lengths.k[b]
        if members and (padding > most_padding or (len(members) + 1) * wider * longer > most):
            yield group()
            members, wider, longer = [], lengths.q[b], lengths.k[b]
        members.append(b)
        m, n = wider, longer
    if members:
        yield group()


def chunked_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: AttentionCall, lengths: Lengths
) -> None:
    """Writes out and softmax_lse."""
    chunks = Chunks(call)
    if 0 in lengths.q or 0 in lengths.k:
        out.zero_()
        lse.fill_(-INF)
    for rows, keys, part in _groups(q, lengths):
        out4, lse4 = rows.room(out), rows.room(lse.t())
        chunks.forward(part, rows.of(q), keys.of(k), keys.of(v), out4, lse4.transpose(1, 2))
        rows.put(out, out4)
        rows.put(lse.t(), lse4)


def chunked_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
    lengths: Lengths,
) -> None:
    """Writes dq, dk and dv."""
    chunks = Chunks(call)
    if 0 in lengths.q or 0 in lengths.k:
        for grad in grads:
            grad.zero_()
    for rows, keys, part in _groups(q, lengths):
        where = (rows, keys, keys)
        rooms = [at.room(grad) for at, grad in zip(where, grads, strict=True)]
        do, lse4 = rows.zero_past(rows.of(dout)), rows.of(lse.t()).transpose(1, 2)
        chunks.backward(part, do, rows.of(q), keys.of(k), keys.of(v), lse4, *rooms)
        for at, grad, room in zip(where, grads, rooms, strict=True):
            at.put(grad, room)
