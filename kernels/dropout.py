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

Cost.  One call (about 70 integer instructions) for 16 elements.  The attention order is that of the accumulator of an
m16n8 matrix instruction: the 16 bytes of one call belong to one thread, so that no exchange between lanes is needed.
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
def bytes_of(w0, w1, w2, w3):
    """The 16 bytes of four words as uint32: [..., word % 2, word // 2, byte % 2, byte // 2]."""
    w = tl.join(tl.join(w0, w1), tl.join(w2, w3))
    return tl.join(tl.join(w & 255, (w >> 8) & 255), tl.join((w >> 16) & 255, (w >> 24) & 255))


@triton.jit
def frag_mask(seed, offset, head, m0, n0, THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Kept elements of rows m0.. and columns n0.. of one head's probabilities, bool [BLOCK_M, BLOCK_N].

    seed, offset: int64 scalars; head: b * num_heads + h.  m0 must be a multiple of 16, n0 of 32, as must the blocks.
    """
    r = m0 // 2 + tl.arange(0, BLOCK_M // 2)
    c = n0 // 8 + tl.arange(0, BLOCK_N // 8)
    zero = tl.zeros([BLOCK_M // 2, BLOCK_N // 8], tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed.to(tl.uint64),
        zero + r.to(tl.uint32)[:, None],
        zero + c.to(tl.uint32)[None, :],
        zero + head.to(tl.uint32),
        zero + offset.to(tl.uint32),
        ROUNDS,
    )
    keep = bytes_of(w0, w1, w2, w3) >= THRESHOLD  # (BLOCK_M/2, BLOCK_N/8, col//16%2, row//8%2, col%2, col//8%2)
    keep = tl.reshape(keep, [BLOCK_M // 16, 8, BLOCK_N // 32, 4, 2, 2, 2, 2])
    keep = tl.permute(keep, (0, 5, 1, 2, 4, 7, 3, 6))
    return tl.reshape(keep, [BLOCK_M, BLOCK_N])
