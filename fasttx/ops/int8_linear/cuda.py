"""Launcher of int8_linear in CUDA C++ (csrc/int8_linear): signature and contract are those of
kernels/int8_linear.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, flat
from .op import ACTIVATIONS

BY_SHAPE = -1
"""The tile is that of csrc/int8_linear/int8_linear_config.h."""
TILE = BY_SHAPE
"""Or the number of another one in its list: a sweep, and the tests, take each."""


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
    x_rows, w_rows = as_rows(x_q), as_rows(w_q)
    residual = None if residual is None else as_rows(residual)
    launch(
        "int8_linear_fwd",
        out=out,
        x_q=x_rows,
        w_q=w_rows,
        x_scale=flat(x_scale),
        w_scale=flat(w_scale),
        bias=flat(bias),
        residual=residual,
        n_rows=x_rows.shape[0],
        n_out=w_rows.shape[0],
        n_in=x_rows.shape[1],
        stride_xm=x_rows.stride(0),
        stride_wn=w_rows.stride(0),
        stride_rm=0 if residual is None else residual.stride(0),
        activation=ACTIVATIONS.index(activation),
        tile=TILE,
    )
