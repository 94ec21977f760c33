"""Launchers of the softmax op in CUDA C++ (csrc/softmax): signatures and contract are those of kernels/softmax.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout_numbers


def _mask_numbers(mask: Tensor | None, shape: torch.Size) -> dict[str, Any]:
    """How the rows of x, of this shape, find theirs in the mask: its leading dims filled up to four, by stride."""
    if mask is None:
        return {"mask_sizes": (1, 1, 1), "mask_strides": (0, 0, 0, 0, 0)}
    missing = [1] * (5 - len(shape))
    strides = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride())]
    sizes = (*missing, *shape[:-1])
    return {"mask_sizes": sizes[1:], "mask_strides": (*[0] * len(missing), *strides)}


def softmax_fwd(
    out: Tensor, x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> None:
    """Writes out; arguments as of the op (fasttx/ops/softmax/op.py)."""
    rows = as_rows(x)
    launch(
        "softmax_fwd",
        {"out": out},
        {"x": rows, "mask": mask, "rng_state": rng_state},
        {"dtype": x.dtype, "mask_dtype": torch.bool if mask is None else mask.dtype},
        n_rows=rows.shape[0], n_cols=rows.shape[1], stride_xm=rows.stride(0), scale=scale, log=log,
        **_mask_numbers(mask, x.shape), **dropout_numbers(rng_state, dropout_p),
    )  # fmt: skip


def softmax_bwd(
    dx: Tensor, dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float,
    dropout_p: float, log: bool,
) -> None:  # fmt: skip
    """Writes dx; saved is out without dropout, x with it."""
    dout_rows, rows = as_rows(dout), as_rows(saved)
    launch(
        "softmax_bwd",
        {"dx": dx},
        {"dout": dout_rows, "saved": rows, "mask": mask, "rng_state": rng_state},
        {"dtype": saved.dtype, "mask_dtype": torch.bool if mask is None else mask.dtype},
        n_rows=rows.shape[0], n_cols=rows.shape[1], stride_dm=dout_rows.stride(0), stride_sm=rows.stride(0),
        scale=scale, log=log, **_mask_numbers(mask, saved.shape), **dropout_numbers(rng_state, dropout_p),
    )  # fmt: skip
