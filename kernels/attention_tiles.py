"""Where the attention kernels read and write: tiles of rows, sequences of a packed batch, and tokens of none."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(base, stride, offs, limit, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Rows `offs` of a matrix, [len(offs), BLOCK_DIM]; zeros from row `limit` and column DIM on."""
    offs_d = tl.arange(0, BLOCK_DIM)
    ptr = base + offs[:, None] * stride + offs_d[None, :]
    if DIM == BLOCK_DIM:
        return tl.load(ptr, mask=offs[:, None] < limit, other=0.0)
    else:
        return tl.load(ptr, mask=(offs[:, None] < limit) & (offs_d[None, :] < DIM), other=0.0)


@triton.jit
def store_tile(base, stride, offs, limit, tile, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Inverse of load_tile, converting to the type of the destination."""
    offs_d = tl.arange(0, BLOCK_DIM)
    mask = offs[:, None] < limit
    if DIM != BLOCK_DIM:
        mask = mask & (offs_d[None, :] < DIM)
    tl.store(base + offs[:, None] * stride + offs_d[None, :], tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def within(bound, total):
    """A bound of a sequence within the tensor: differences of two cannot wrap."""
    return tl.minimum(tl.maximum(bound, 0), total)


@triton.jit
def sequence(b, seqlen, cu_seqlens, total):
    """(first token as int64, length) of sequence b among `total` tokens; at most `seqlen` long, and within them."""
    if cu_seqlens is None:
        return b.to(tl.int64) * seqlen, seqlen
    else:
        first = within(tl.load(cu_seqlens + b), total)
        end = within(tl.load(cu_seqlens + b + 1), total)
        return first.to(tl.int64), tl.minimum(end - first, seqlen)


@triton.jit
def first_token(x, b, h, first, stride_b, stride_m, stride_h, cu_seqlens):
    """A pointer to head h of the first token of sequence b, which is token `first` of a packed batch."""
    x += h.to(tl.int64) * stride_h
    if cu_seqlens is None:
        x += b.to(tl.int64) * stride_b
    else:
        x += first * stride_m
    return x


@triton.jit
def first_row(head, h, first, max_seqlen, total, cu_seqlens):
    """The offset of that token in softmax_lse; head = b * num_heads + h."""
    if cu_seqlens is None:
        return head.to(tl.int64) * max_seqlen
    else:
        return h.to(tl.int64) * total + first


@triton.jit
def first_pair(head, h, b, first, head_blocks, cu_seqlens, ROWS: tl.constexpr):
    """The offset of that token in lse_delta, where each sequence of a head starts a block of ROWS pairs.

    head_blocks: blocks of one head, or of one head and sequence where there is no cu_seqlens.
    """
    if cu_seqlens is None:
        block = head.to(tl.int64) * head_blocks
    else:
        block = h.to(tl.int64) * head_blocks + first // ROWS + b
    return block * (2 * ROWS)


@triton.jit
def first_of(x, N: tl.constexpr):
    """The first N elements of a vector; N and its length are powers of two."""
    if x.shape[0] > N:
        lower, _ = tl.split(tl.trans(tl.reshape(x, [2, x.shape[0] // 2])))
        return first_of(lower, N)
    else:
        return x


@triton.jit
def fill_rows(x, stride, row, end, value, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Rows `row` to `end` of a matrix become `value`."""
    offs_d = tl.arange(0, BLOCK_DIM)
    for i in range(row, end):
        tile = tl.full([BLOCK_DIM], value, tl.float32).to(x.dtype.element_ty)
        tl.store(x + tl.cast(i, tl.int64) * stride + offs_d, tile, mask=offs_d < DIM)


@triton.jit
def fill_uncovered(
    x, stride, b, batch, first, n, cu_seqlens, total, lost, none, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr
):
    """Writes the rows of a packed x that no tile of sequence b, rows first to first + n, covers.

    `lost`: before the first sequence, and the rest of one longer than max_seqlen.  `none`: after the last sequence.
    """
    first = first.to(tl.int32)
    end = within(tl.load(cu_seqlens + b + 1), total)
    if b == 0:
        fill_rows(x, stride, 0, first, lost, DIM, BLOCK_DIM)
    fill_rows(x, stride, first + n, end, lost, DIM, BLOCK_DIM)
    if b + 1 == batch:
        fill_rows(x, stride, end, total, none, DIM, BLOCK_DIM)
