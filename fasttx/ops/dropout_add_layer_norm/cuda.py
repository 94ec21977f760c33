"""Launchers of dropout_add_layer_norm in CUDA C++ (csrc/dropout_add_layer_norm): signatures and contract are those of
kernels/dropout_add_layer_norm.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout, flat, only_if

PROGRAMS = 396
"""Blocks of a backward with sums at most: three, as many as the registers hold for rows of 513 to 1,024 columns, for
each of an H100's multiprocessors (132). A constant, not the device's own number: the same sums on every device."""


def dropout_add_layer_norm_fwd(
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> None:
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/dropout_add_layer_norm/op.py)."""
    rows = as_rows(x)
    residual_rows = None if residual is None else as_rows(residual)
    launch(
        "dropout_add_layer_norm_fwd",
        out=out,
        mean=mean,
        rstd=rstd,
        x=rows,
        residual=residual_rows,
        weight=flat(weight),
        bias=flat(bias),
        dropout=dropout(rng_state, row_index, dropout_p),
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
        stride_rm=0 if residual_rows is None else residual_rows.stride(0),
        eps=eps,
    )


def dropout_add_layer_norm_bwd(
    dx: Tensor,
    dresidual: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dout: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> None:
    """Writes the gradients that are needed; the others are of no element."""
    rows, dout_rows = as_rows(x), as_rows(dout)
    residual_rows = None if residual is None else as_rows(residual)
    n_rows, n_cols = rows.shape
    sums, programs = int(needs_dweight) + int(needs_dbias), min(n_rows, PROGRAMS)
    if not (sums or needs_dx or needs_dresidual):
        return
    launch(
        "dropout_add_layer_norm_bwd",
        dx=only_if(needs_dx, dx),
        dresidual=only_if(needs_dresidual, dresidual),
        dweight=only_if(needs_dweight, dweight),
        dbias=only_if(needs_dbias, dbias),
        partial=dout.new_empty((sums, programs, n_cols), dtype=torch.float32) if sums else None,
        dout=dout_rows,
        x=rows,
        residual=residual_rows,
        weight=flat(weight),
        mean=mean,
        rstd=rstd,
        dropout=dropout(rng_state, row_index, dropout_p),
        n_rows=n_rows,
        n_cols=n_cols,
        stride_dm=dout_rows.stride(0),
        stride_xm=rows.stride(0),
        stride_rm=0 if residual_rows is None else residual_rows.stride(0),
        programs=programs,
    )
