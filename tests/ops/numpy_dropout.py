"""The dropout mask of attention, written in NumPy from the definition in kernels/dropout.py, element by element."""

from __future__ import annotations

import numpy as np


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int], rounds: int = 7) -> list[np.ndarray]:
    """Philox-4x32: four words (as uint64 below 2^32) for every counter."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(rounds):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def attention_keep(seed: int, offset: int, head: int, rows: np.ndarray, cols: np.ndarray, threshold: int) -> np.ndarray:
    """Kept elements, bool (len(rows), len(cols)); head: b * num_heads + h; rows, cols: within the sequence."""
    r, c = np.broadcast_arrays(rows[:, None], cols[None, :])
    counter = (
        r // 16 * 8 + r % 8,
        c // 32 * 4 + c % 8 // 2,
        np.full(r.shape, head & 0xFFFFFFFF),
        np.full(r.shape, offset & 0xFFFFFFFF),
    )
    words = np.stack(philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)), -1)
    which = r // 8 % 2 * 2 + c // 16 % 2
    word = np.take_along_axis(words, which[..., None].astype(np.int64), -1)[..., 0]
    shift = (8 * (c // 8 % 2 * 2 + c % 2)).astype(np.uint64)
    return ((word >> shift) & np.uint64(255)) >= threshold
