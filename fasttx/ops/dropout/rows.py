"""Row-wise dropout in PyTorch's own operators: bit for bit the mask of kernels/row_dropout.py, and a fast one for CPUs.

The scheme is described there; the numbers below must agree with it (tests/ops/test_row_dropout.py holds them together).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import values_are_known, wrong

SOFTMAX_TAG, LAYER_NORM_TAG, EMBEDDING_TAG, GELU_TAG = 0, 1, 2, 3

_LOW16, _LOW32 = 0xFFFF, 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # Philox-4x32 multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key
_ROUNDS = 7


def threshold(dropout_p: float) -> int:
    """The smallest byte that is kept: p is applied in steps of 1/256, at least one step, 1 exactly."""
    if dropout_p >= 1.0:
        return 256
    return min(max(round(256 * dropout_p), 1), 255)


def keep_scale(dropout_p: float) -> float:
    """What kept values are multiplied by: 1 / (1 - threshold / 256), 0 where nothing is kept."""
    dropped = threshold(dropout_p)
    return 256.0 / (256 - dropped) if dropped < 256 else 0.0


def check(row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, n_rows: int) -> None:
    """ValueError, with the argument named, unless these describe a mask of `n_rows` rows, or none."""
    if row_index is not None and (row_index.dtype not in (torch.int32, torch.int64) or row_index.shape != (n_rows,)):
        raise ValueError(
            wrong("row_index", f"{row_index.dtype} {tuple(row_index.shape)}", f"int32 or int64 ({n_rows},)")
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(wrong("dropout_p", dropout_p, "a number in [0, 1)"))
    if (rng_state is None) != (dropout_p == 0.0):
        raise ValueError(
            wrong("rng_state", f"{rng_state} with dropout_p={dropout_p}", "a state where dropout_p > 0, else None")
        )
    if rng_state is not None and (rng_state.dtype != torch.int64 or rng_state.shape != (2,)):
        raise ValueError(wrong("rng_state", f"{rng_state.dtype} {tuple(rng_state.shape)}", "int64 (2,)"))


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * x, 32-bit values kept in int64 (whose own product would overflow)."""
    low = x * (constant & _LOW16)
    high = x * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & _LOW16) << 16) | (low & _LOW16)


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """Four 32-bit words of Philox-4x32 with 7 rounds; every argument int64 with a value below 2^32, broadcast
    together.
    """
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _LOW32, (k1 + _W1) & _LOW32
    return c0, c1, c2, c3


def row_keep(rng_state: Tensor, row_index: Tensor, n_cols: int, tag: int, dropout_p: float) -> Tensor:
    """The exact mask of the kernels.

    Args:
        rng_state: int64 (2,), (seed, offset).
        row_index: int64 (n_rows,), the number of each row.
        n_cols: length of a row.
        tag: 0 for softmax, 1 for dropout_add_layer_norm, 2 for embedding_layer_norm, 3 for bias_gelu.
        dropout_p: probability of dropping an element, in steps of 1/256.

    Returns:
        bool (n_rows, n_cols), True where the element is kept.
    """
    seed, offset = rng_state[0], rng_state[1]
    calls = torch.arange((n_cols + 15) // 16, device=row_index.device).unsqueeze(0)
    rows = (row_index & _LOW32).unsqueeze(1)
    words = philox(calls, rows, torch.full_like(seed, tag), offset & _LOW32, seed & _LOW32, (seed >> 32) & _LOW32)
    shape = (rows.shape[0], calls.shape[1])
    stacked = torch.stack([w.expand(shape) for w in words], -1).unsqueeze(-1)  # (n_rows, calls, 4, 1)
    shifts = torch.tensor([0, 8, 16, 24], device=row_index.device)
    data = (stacked >> shifts) & 255  # (n_rows, calls, 4, 4), bytes in order
    return data.reshape(shape[0], shape[1] * 16)[:, :n_cols] >= threshold(dropout_p)


def drawn_keep(rng_state: Tensor, shape: torch.Size, tag: int, dropout_p: float) -> Tensor:
    """The mask of the `torch` backend for a tensor of `shape` (rows over the last dim): a function of rng_state too.

    On a CPU it comes from PyTorch's generator, seeded from rng_state, which is several times faster than Philox in
    PyTorch operators; elsewhere, and in exported programs, it is :func:`row_keep`, which reads no value back.

    Returns:
        On a CPU float32, 1 kept and 0 dropped; elsewhere bool.
    """
    if rng_state.device.type == "cpu" and values_are_known(rng_state):
        seed, offset = rng_state.tolist()
        generator = torch.Generator().manual_seed((seed + offset * 0x9E3779B97F4A7C15 + tag) % 2**63)
        kept = 1.0 - threshold(dropout_p) / 256
        return torch.empty(shape, dtype=torch.float32).bernoulli_(kept, generator=generator)
    n_cols = shape[-1]
    n_rows = math.prod(shape[:-1])  # numel() would make constants of sizes that an exported program has as symbols
    rows = torch.arange(n_rows, device=rng_state.device)
    return row_keep(rng_state, rows, n_cols, tag, dropout_p).reshape(shape)
