"""Attention's dropout mask in PyTorch's own operators: bit for bit the mask of kernels/dropout.py, on any device.

The scheme and its reason (16 bytes of one call are one thread's accumulators) are described there;
tests/ops/test_attention_op.py holds this file against a second derivation in NumPy and against the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import philox

_LOW32 = 0xFFFFFFFF


def dropout_threshold(dropout_p: float) -> int:
    """256 * p_hat: 0 where nothing is dropped, else clamp(round(256 * dropout_p), 1, 255)."""
    return 0 if dropout_p == 0.0 else min(max(round(256.0 * dropout_p), 1), 255)


def dropout_scale(dropout_p: float) -> float:
    """1 / (1 - p_hat), what kept probabilities are multiplied by."""
    return 256.0 / (256 - dropout_threshold(dropout_p))


def attention_keep(rng_state: Tensor, heads: Tensor, seqlen_q: int, seqlen_k: int, dropout_p: float) -> Tensor:
    """Which probabilities are kept.  No value is read back from the device.

    Args:
        rng_state: int64 (2,), (seed, offset).
        heads: int64 (n,), the numbers b * num_heads + h of the heads wanted.
        seqlen_q, seqlen_k: rows and columns, both counted within the sequence.
        dropout_p: in [0, 1), rounded to a multiple of 1/256.

    Returns:
        bool (n, seqlen_q, seqlen_k), True where the element is kept.
    """
    device = rng_state.device
    seed, offset = rng_state[0], rng_state[1]
    tiles_q, tiles_k = (seqlen_q + 15) // 16, (seqlen_k + 31) // 32  # a tile: 16 rows x 32 columns, 32 calls
    c0 = torch.arange(tiles_q * 8, device=device)[:, None]
    c1 = torch.arange(tiles_k * 4, device=device)[None, :]
    c2 = (heads & _LOW32)[:, None, None]
    words = philox(c0, c1, c2, offset & _LOW32, seed & _LOW32, (seed >> 32) & _LOW32)
    shape = (heads.shape[0], tiles_q * 8, tiles_k * 4)
    word = torch.stack([w.expand(shape) for w in words], -1)
    word = word.view(
        len(heads), tiles_q, 8, tiles_k, 4, 2, 2
    )  # (head, row//16, row%8, col//32, col%8//2, row//8%2, col//16%2)
    word = word.permute(0, 1, 5, 2, 3, 6, 4)  # (head, row//16, row//8%2, row%8, col//32, col//16%2, col%8//2)
    shifts = torch.arange(0, 32, 8, device=device).view(2, 1, 2)  # (col//8%2, col%8//2, col%2)
    data = (word.unsqueeze(-2).unsqueeze(-1) >> shifts) & 255
    return data.reshape(len(heads), tiles_q * 16, tiles_k * 32)[:, :seqlen_q, :seqlen_k] >= dropout_threshold(dropout_p)
