"""Linear layer of int8 rows and int8 weights, dequantised in the epilogue.

Mathematics
    acc_mn = sum_k x_q_mk w_q_nk in int32, exact.   y = (acc x_scale_m) w_scale_n + bias_n in float32, and then
    gelu: y/2 (1 + erf(y / sqrt 2));  gelu_tanh: y/2 (1 + tanh u) = y sigmoid(2 u), u = sqrt(2/pi) (y + 0.044715 y^3)
    Both are those of gelu.py.
    out = act(y) + residual, rounded once to the dtype of out.

Contract
    A program computes BLOCK_M x BLOCK_N outputs, alone, over all of k: deterministic. x_q and w_q lie by rows with k at
    stride 1, residual by rows at one stride; out, scales and bias are contiguous. Rows and columns beyond the last are
    read as the last one and not stored; k beyond in_features counts as 0. Programs run in groups of GROUP_M row blocks,
    so that those that run at a time share rows of w_q in L2. Loads of 16 bytes where rows start at multiples of 16,
    that is where in_features is one; narrower ones elsewhere.

Cost
    2 n_rows in_features out_features operations; x_q is read once a column block, w_q once a row block, the outputs are
    written once. Shared memory: num_stages x (BLOCK_M + BLOCK_N) x BLOCK_K bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import arch_of
from .gelu import gelu
from .rows import as_rows, flat

NONE, GELU, GELU_TANH = ACTIVATIONS = (0, 1, 2)
CODES = {"none": NONE, "gelu": GELU, "gelu_tanh": GELU_TANH}
ERF_FORM, TANH_FORM = tl.constexpr(GELU), tl.constexpr(GELU_TANH)
GROUP_M = 8


class Config(NamedTuple):
    """Tile of one program."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TABLE: dict[int, tuple[Config, ...]] = {
    80: (Config(128, 128, 64, 8, 4), Config(64, 128, 64, 4, 4), Config(64, 64, 128, 4, 3), Config(32, 64, 128, 4, 3)),
    90: (Config(128, 128, 128, 8, 4), Config(64, 128, 128, 4, 4), Config(64, 64, 128, 4, 4)),
    100: (Config(128, 128, 64, 8, 4), Config(64, 128, 64, 4, 4), Config(64, 64, 128, 4, 3), Config(32, 64, 128, 4, 3)),
}
"""Arch -> tiles from the largest, which moves the fewest bytes an operation, to the smallest. 32 columns of k at least:
the compiler takes no shorter product of int8. sm_90: 64 rows, those of one warpgroup's wgmma. Not yet timed."""
UNALIGNED = Config(64, 64, 64, 4, 2)
"""Where in_features is no multiple of 16, and so neither are the rows: their bytes are loaded one by one through
registers, of which a larger tile has too few."""
PROGRAMS = 132
"""Programs that a tile should leave: one for each multiprocessor of an H100. A constant, so that the tile, like the
result, is a function of the shape alone."""


def config(n_rows: int, n_out: int, n_in: int, arch: int) -> Config:
    """The largest tile of which there are PROGRAMS; the smallest where there are fewer of any.

    Args:
        n_rows, n_out: the outputs.
        n_in: in_features.
        arch: compute capability, times ten.
    """
    if n_in % 16:
        return UNALIGNED
    tiles = TABLE[100 if 100 <= arch < 120 else 90 if 90 <= arch < 100 else 80]
    for tile in tiles:
        if triton.cdiv(n_rows, tile.block_m) * triton.cdiv(n_out, tile.block_n) >= PROGRAMS:
            return tile
    return tiles[-1]


@triton.jit(do_not_specialize=["n_rows"])
def int8_linear_kernel(
    out_ptr,
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    residual_ptr,
    n_rows,
    n_out,
    n_in,
    stride_xm,
    stride_wn,
    stride_rm,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(n_rows, BLOCK_M), tl.cdiv(n_out, BLOCK_N)
    first_m = pid // (GROUP * blocks_n) * GROUP
    group = tl.minimum(blocks_m - first_m, GROUP)
    within = pid % (GROUP * blocks_n)
    rows = (first_m + within % group) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = (within // group) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_out
    ks = tl.arange(0, BLOCK_K)
    x_at = x_ptr + tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None] * stride_xm + ks[None, :]  # (BLOCK_M, BLOCK_K)
    w_at = w_ptr + tl.minimum(cols, n_out - 1).to(tl.int64)[None, :] * stride_wn + ks[:, None]  # (BLOCK_K, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for first in range(0, n_in, BLOCK_K):
        if EVEN_K:
            x, w = tl.load(x_at), tl.load(w_at)
        else:
            x = tl.load(x_at, mask=ks[None, :] < n_in - first, other=0)
            w = tl.load(w_at, mask=ks[:, None] < n_in - first, other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        x_at += BLOCK_K
        w_at += BLOCK_K
    x_scale = tl.load(x_scale_ptr + rows, mask=row_ok, other=0.0)
    w_scale = tl.load(w_scale_ptr + cols, mask=col_ok, other=0.0)
    y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    if BIAS:
        y += tl.load(bias_ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == ERF_FORM:
        y = gelu(y, False)
    elif ACTIVATION == TANH_FORM:
        y = gelu(y, True)
    ok = row_ok[:, None] & col_ok[None, :]
    long_rows = rows.to(tl.int64)[:, None]
    if RESIDUAL:
        y += tl.load(residual_ptr + long_rows * stride_rm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + long_rows * n_out + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=ok)


def int8_linear_fwd(
    out: Tensor,
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/int8_linear/op.py)."""
    (n_rows, n_in), n_out = x_q.shape, w_q.shape[0]
    (x_q, stride_x), (w_q, stride_w), (residual, stride_r) = as_rows(x_q), as_rows(w_q), as_rows(residual)
    tile = config(n_rows, n_out, n_in, arch_of(x_q.device))
    grid = (triton.cdiv(n_rows, tile.block_m) * triton.cdiv(n_out, tile.block_n),)
    int8_linear_kernel[grid](
        out,
        x_q,
        w_q,
        flat(x_scale),
        flat(w_scale),
        flat(bias),
        residual,
        n_rows,
        n_out,
        n_in,
        stride_x,
        stride_w,
        stride_r,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        ACTIVATION=CODES[activation],
        EVEN_K=n_in % tile.block_k == 0,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP=GROUP_M,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
