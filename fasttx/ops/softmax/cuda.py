"""Launchers of the softmax op in CUDA C++ (csrc/softmax): signatures and contract are those of kernels/softmax.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout_numbers


def _mask(mask: Tensor | None, shape: torch.Size) -> dict[str, Any]:
    """The struct SoftmaxMask: how the rows of x, of this shape, find theirs in the mask, filled up to four dims."""
    if mask is None:
        return {"data": None, "dtype": torch.bool, "sizes": (1, 1, 1), "strides": (0, 0, 0, 0, 0)}
    missing = [1] * (5 - len(shape))
    strides = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride())]
    sizes = (*missing, *shape[:-1])
    return {"data": mask, "dtype": mask.dtype, "sizes": sizes[1:], "strides": (*[0] * len(missing), *strides)}


def softmax_fwd(
    out: Tensor, x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/softmax/op.py)."""
    rows = as_rows(x)
    launch(
        "softmax_fwd",
        out=out,
        x=rows,
        mask=_mask(mask, x.shape),
        rng_state=rng_state,
        dtype=x.dtype,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_xm=rows.stride(0),
        scale=scale,
        log=log,
        **dropout_numbers(rng_state, dropout_p),
    )


def softmax_bwd(
    dx: Tensor,
    dout: Tensor,
    saved: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    scale: float,
    dropout_p: float,
    log: bool,
) -> None:
    """Writes dx; saved is out without dropout, x with it."""
    dout_rows, rows = as_rows(dout), as_rows(saved)
    launch(
        "softmax_bwd",
        dx=dx,
        dout=dout_rows,
        saved=rows,
        mask=_mask(mask, saved.shape),
        rng_state=rng_state,
        dtype=saved.dtype,
        n_rows=rows.shape[0],
        n_cols=rows.shape[1],
        stride_dm=dout_rows.stride(0),
        stride_sm=rows.stride(0),
        scale=scale,
        log=log,
        **dropout_numbers(rng_state, dropout_p),
    )
