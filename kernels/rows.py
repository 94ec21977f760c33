"""How rows, and vectors beside them, reach kernels: launchers lay them out, kernels load them as float32."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load(ptr, offs, n, MASKED: tl.constexpr):
    """Elements `offs` as float32; 0 from n on, which is asked for where MASKED alone."""
    if MASKED:
        value = tl.load(ptr + offs, mask=offs < n, other=0.0)
    else:
        value = tl.load(ptr + offs)
    return value.to(tl.float32)


@triton.jit
def row_vector(ptr, cols, col_ok, PRESENT: tl.constexpr, default: tl.constexpr):
    """weight or bias as float32 (1, BLOCK_N); `default` where there is none."""
    value = tl.full([1, cols.shape[0]], default, tl.float32)
    if PRESENT:
        value = tl.load(ptr + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def row_geometry(row, stride, n_cols, VEC: tl.constexpr):
    """(offset of the row, columns before its first 16-byte boundary, columns in whole vectors behind it)."""
    start = row * stride
    lead = ((VEC - start % VEC) % VEC).to(tl.int32)
    middle = tl.multiple_of((n_cols - lead) // VEC * VEC, VEC)
    return start, lead, middle


def as_rows(x: Tensor | None, n_cols: int | None = None) -> tuple[Tensor | None, int]:
    """x as (n_rows, n_cols) with columns at stride 1, and the stride of its rows; a copy only where it has to be."""
    if x is None:
        return None, 0
    rows = x.reshape(-1, x.shape[-1] if n_cols is None else n_cols)
    if rows.stride(1) != 1 and rows.shape[1] != 1:
        rows = rows.contiguous()
    return rows, rows.stride(0)


def flat(x: Tensor | None) -> Tensor | None:
    """x contiguous."""
    return None if x is None else x.contiguous()
