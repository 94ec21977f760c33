"""Launchers of bias_gelu in CUDA C++ (csrc/bias_gelu): signatures and contract are those of kernels/bias_gelu.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout, flat, only_if

COLUMNS = 256
"""Columns of a whole tile: no thread is idle in rows of a multiple of it."""
PROGRAMS = 1056
"""Blocks of a backward with dbias at most: eight, as many as the registers hold, for each of an H100's multiprocessors
(132). A constant, not the device's own number: the same sums on every device."""


def _in_rows(alike: bool, *tensors: Tensor) -> list[Tensor]:
    """Each as (n_rows, n_cols) with columns at stride 1; of whole tiles where all columns are treated alike and all
    tensors lie in one piece.
    """
    if alike and all(x.is_contiguous() and x.numel() % COLUMNS == 0 for x in tensors):
        return [x.view(-1, COLUMNS) for x in tensors]
    return [as_rows(x) for x in tensors]


def bias_gelu_fwd(
    out: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/bias_gelu/op.py)."""
    (rows,) = _in_rows(bias is None and rng_state is None, x)
    launch(
        "bias_gelu_fwd",
        out=out,
        x=rows,
        bias=flat(bias),
        dropout=dropout(rng_state, row_index, dropout_p),
        dtype=x.dtype,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
        tanh=tanh,
    )


def bias_gelu_bwd(
    dx: Tensor,
    dbias: Tensor,
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    needs_dx: bool,
    needs_dbias: bool,
) -> None:
    """Writes the gradients that are needed; the others are of no element."""
    if not (needs_dx or needs_dbias):
        return
    rows, dout_rows = _in_rows(bias is None and rng_state is None, x, dout)
    n_rows, n_cols = rows.shape
    row_programs = min(n_rows, max(PROGRAMS // -(-n_cols // COLUMNS), 1))
    launch(
        "bias_gelu_bwd",
        dx=only_if(needs_dx, dx),
        dbias=only_if(needs_dbias, dbias),
        partial=x.new_empty((row_programs, n_cols), dtype=torch.float32) if needs_dbias else None,
        dout=dout_rows,
        x=rows,
        bias=flat(bias),
        dropout=dropout(rng_state, row_index, dropout_p),
        dtype=x.dtype,
        n_rows=n_rows,
        n_cols=n_cols,
        stride_dm=dout_rows.stride(0),
        stride_xm=rows.stride(0),
        row_programs=row_programs,
        tanh=tanh,
    )
