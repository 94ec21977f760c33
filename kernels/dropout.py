"""Dropout masks from a counter-based generator: the same bits in Triton, CUDA C++ and the NumPy reference.

Mathematics.  Philox-4x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a
128-bit counter and a 64-bit key (the seed) to 16 bytes.  An element is kept when its byte >= threshold, with
threshold = clamp(round(256 p), 1, 255) for 0 < p < 1: the probability in force is p_hat = threshold / 256, the scale
1 / (1 - p_hat).

Contract.  rng_state is int64 (2,) = (seed, offset); counter word 3 is the low half of the offset.
Attention, element (row, col) of sequence b and head h, both counted within the sequence:
    counter = (row // 16 * 8 + row % 8, col // 32 * 4 + col % 8 // 2, b * num_heads + h, offset)
    word = row // 8 % 2 * 2 + col // 16 % 2;  byte = col // 8 % 2 * 2 + col % 2
Dropout of rows has an order of its own: row_dropout.py.

Cost.  One call (about 50 instructions) for 16 elements, 17 for which of them are kept, as bits, and one to test each.
The attention order is that of the accumulator of an m16n8 matrix instruction of Q K^T: the 16 bytes of one call belong
to one thread, so that no exchange is needed.  In the accumulator of K Q^T four threads share them: these exchange bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


def dropout_threshold(dropout_p: float) -> int:
    """256 * p_hat: 0 where nothing is dropped, else clamp(round(256 * dropout_p), 1, 255)."""
    return 0 if dropout_p == 0.0 else min(max(round(256.0 * dropout_p), 1), 255)


@triton.jit
def keep_scale(THRESHOLD: tl.constexpr):
    """1 / (1 - p_hat), what kept probabilities are multiplied by."""
    return 256.0 / (256 - THRESHOLD)


@triton.jit
def log_keep_scale(THRESHOLD: tl.constexpr):
    """The logarithm of keep_scale: what a logsumexp is lowered by, so that probabilities come out multiplied by it."""
    if THRESHOLD == 0:
        return 0.0
    else:
        return tl.log(tl.cast(keep_scale(THRESHOLD), tl.float32))


@triton.jit
def kept_bytes(w, THRESHOLD: tl.constexpr):
    """The highest bit of each byte of w becomes whether the byte is at least THRESHOLD; all others become 0."""
    if THRESHOLD <= 128:
        return (((w & 0x7F7F7F7F) + (128 - THRESHOLD) * 0x01010101) | w) & 0x80808080
    else:
        return ((w & 0x7F7F7F7F) + (256 - THRESHOLD) * 0x01010101) & w & 0x80808080


@triton.jit
def kept_bits(seed, offset, head, r, c, THRESHOLD: tl.constexpr):
    """Which elements of the call with counter (r, c, head, offset) are kept: bit 8 * byte + word of a uint32."""
    zero = (r * 0 + c * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed.to(tl.uint64),
        zero + r.to(tl.uint32),
        zero + c.to(tl.uint32),
        zero + head.to(tl.uint32),
        zero + offset.to(tl.uint32),
        ROUNDS,
    )
    low = (kept_bytes(w0, THRESHOLD) >> 7) | (kept_bytes(w1, THRESHOLD) >> 6)
    return low | (kept_bytes(w2, THRESHOLD) >> 5) | (kept_bytes(w3, THRESHOLD) >> 4)


@triton.jit
def frag_mask(seed, offset, head, m0, n0, THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Kept elements of rows m0.. and columns n0.. of one head's probabilities, bool [BLOCK_M, BLOCK_N].

    seed, offset: int64 scalars; head: b * num_heads + h.  m0 must be a multiple of 16, n0 of 32, as must the blocks.
    """
    # the calls of both halves of the columns share a word, at a distance of 4 bits
    HALVES: tl.constexpr = 2 if BLOCK_N >= 64 else 1
    COLS: tl.constexpr = BLOCK_N // 8 // HALVES
    r = m0 // 2 + tl.arange(0, BLOCK_M // 2)[:, None]
    c = n0 // 8 + tl.arange(0, COLS)[None, :]
    bits = kept_bits(seed, offset, head, r, c, THRESHOLD)
    if HALVES == 2:
        bits |= kept_bits(seed, offset, head, r, c + COLS, THRESHOLD) << 4
    bits = tl.reshape(bits, [BLOCK_M // 16, 1, 8, 1, COLS // 4, 1, 1, 4, 1])
    # [row//16, row//8%2, row%8, half, col//32, col//16%2, col//8%2, col%8//2, col%2]
    two = tl.arange(0, 2).to(tl.uint32)
    bits = bits >> (tl.reshape(tl.arange(0, HALVES).to(tl.uint32), [1, 1, 1, HALVES, 1, 1, 1, 1, 1]) * 4)
    bits = bits >> (tl.reshape(two, [1, 2, 1, 1, 1, 1, 1, 1, 1]) * 2 + tl.reshape(two, [1, 1, 1, 1, 1, 2, 1, 1, 1]))
    bits = bits >> (
        tl.reshape(two, [1, 1, 1, 1, 1, 1, 2, 1, 1]) * 16 + tl.reshape(two, [1, 1, 1, 1, 1, 1, 1, 1, 2]) * 8
    )
    return tl.reshape((bits & 1) != 0, [BLOCK_M, BLOCK_N])


@triton.jit
def frag_mask_transposed(
    seed, offset, head, m0, n0, THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The transpose of frag_mask, [BLOCK_N, BLOCK_M], for an accumulator of K Q^T.

    Four threads need bits of one call, in two warps.  Each call is made once, and its bits cross through shared memory.
    """
    HALVES: tl.constexpr = 2 if BLOCK_M >= 64 else 1  # of the rows
    ROWS: tl.constexpr = BLOCK_M // 2 // HALVES
    half = tl.arange(0, HALVES)[:, None, None]
    r = m0 // 2 + half * ROWS + tl.arange(0, ROWS)[None, None, :]
    c = n0 // 8 + tl.arange(0, BLOCK_N // 8)[None, :, None]
    # The sum is an or.  Triton never repeats a reduction in the layout of its result: so the calls are not repeated.
    bits = tl.xor_sum(kept_bits(seed, offset, head, r, c, THRESHOLD) << (half * 4).to(tl.uint32), 0)
    bits = tl.reshape(bits, [BLOCK_N // 32, 1, 1, 4, 1, 1, ROWS // 8, 1, 8])
    # [col//32, col//16%2, col//8%2, col%8//2, col%2, half, row//16, row//8%2, row%8]
    two = tl.arange(0, 2).to(tl.uint32)
    bits = bits >> (tl.reshape(two, [1, 2, 1, 1, 1, 1, 1, 1, 1]) + tl.reshape(two, [1, 1, 1, 1, 2, 1, 1, 1, 1]) * 8)
    bits = bits >> (tl.reshape(tl.arange(0, HALVES).to(tl.uint32), [1, 1, 1, 1, 1, HALVES, 1, 1, 1]) * 4)
    bits = bits >> (
        tl.reshape(two, [1, 1, 2, 1, 1, 1, 1, 1, 1]) * 16 + tl.reshape(two, [1, 1, 1, 1, 1, 1, 1, 2, 1]) * 2
    )
    return tl.reshape((bits & 1) != 0, [BLOCK_N, BLOCK_M])
