"""Row-wise dropout: which elements of a row are kept, as a pure function of (seed, offset, tag, row, column).

Mathematics
    word_0..word_3 = Philox-4x32, 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
        key = seed (64 bits), counter = (col // 16, row, tag, offset mod 2^32);
    byte(col) = byte col % 4 (lowest first) of word_{col % 16 // 4};   keep(row, col) = byte(col) >= threshold;
    threshold = clamp(round(256 p), 1, 255) for 0 < p < 1, 256 for p = 1;   kept values times 256 / (256 - threshold).

Contract
    Forward and backward, Triton, CUDA and fasttx/ops/dropout/rows.py draw the same bits, whatever the tile. `tag` tells
    the users apart (0 = softmax, 1 = layer norm, 2 = embeddings, 3 = GELU), so that two ops of one model that share a
    state do not share a mask.
    rng_state is read from the device: nothing here depends on a host value but the threshold.

Cost
    One Philox call (7 rounds, 28 multiplications) for 16 elements, or for 8 or 4 without an exchange; one compare each.
"""

from __future__ import annotations

import triton
import triton.language as tl

SOFTMAX_TAG = 0
"""The tag of the softmax op."""
LAYER_NORM_TAG = 1
"""The tag of the op dropout_add_layer_norm."""
EMBEDDING_TAG = 2
"""The tag of the op embedding_layer_norm."""
GELU_TAG = 3
"""The tag of the op bias_gelu."""


def threshold(dropout_p: float) -> int:
    """The smallest byte that is kept: p is applied in steps of 1/256, at least one step, 1 exactly."""
    if dropout_p >= 1.0:
        return 256
    return min(max(round(256 * dropout_p), 1), 255)


def keep_scale(dropout_p: float) -> float:
    """What kept values are multiplied by: 1 / (1 - threshold / 256), 0 where nothing is kept."""
    dropped = threshold(dropout_p)
    return 256.0 / (256 - dropped) if dropped < 256 else 0.0


@triton.jit
def row_keep(
    rng_ptr,
    rows,
    col_start,
    tag: tl.constexpr,
    threshold,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr = 16,
):
    """The keep mask (ROWS, BLOCK_N) of `rows` (ROWS,) and columns col_start .. col_start + BLOCK_N, both multiples of
    16.

    GROUP: columns for which a thread makes a call. 16 are all that a call serves; they then go to the threads that hold
    the columns, through shared memory. 8 or 4, as many as a thread's access of 16 bytes has, cost two or four times the
    calls and no exchange.
    """
    seed = tl.load(rng_ptr).to(tl.uint64)
    offset = tl.load(rng_ptr + 1).to(tl.uint32)
    CALLS: tl.constexpr = BLOCK_N // GROUP
    group = (col_start // GROUP) + tl.arange(0, CALLS)
    zero = tl.zeros([ROWS, CALLS], tl.uint32)
    c0 = zero + (group // (16 // GROUP)).to(tl.uint32)[None, :]
    c1 = zero + rows.to(tl.uint32)[:, None]
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + tag, zero + offset, 7)
    # join puts its new dim last, so (a, c) then (b, d) then the pair of pairs reads a, b, c, d when flattened
    if GROUP == 16:
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (ROWS, CALLS, 2, 2)
    elif GROUP == 8:
        second = (zero + (group % 2).to(tl.uint32)[None, :]) == 1
        words = tl.join(tl.where(second, w2, w0), tl.where(second, w3, w1))  # (ROWS, CALLS, 2)
    else:
        tl.static_assert(GROUP == 4)
        part = zero + (group % 4).to(tl.uint32)[None, :]
        words = tl.where(part < 2, tl.where(part == 0, w0, w1), tl.where(part == 2, w2, w3))
    b0 = (words & 255) >= threshold
    b1 = ((words >> 8) & 255) >= threshold
    b2 = ((words >> 16) & 255) >= threshold
    b3 = (words >> 24) >= threshold
    keep = tl.join(tl.join(b0, b2), tl.join(b1, b3))  # (..., 2, 2)
    return tl.reshape(keep, [ROWS, BLOCK_N])


@triton.jit
def numbered_keep(
    rng_ptr,
    index_ptr,
    rows,
    row_ok,
    col_start,
    tag: tl.constexpr,
    threshold,
    INDEXED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr = 16,
):
    """row_keep of rows that are counted by index_ptr where there is one."""
    numbers = rows
    if INDEXED:
        numbers = tl.load(index_ptr + rows, mask=row_ok, other=0)
    return row_keep(rng_ptr, numbers, col_start, tag, threshold, ROWS, BLOCK_N, GROUP)
