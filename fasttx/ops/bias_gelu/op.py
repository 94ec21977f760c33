"""The row of bias_gelu: out = dropout(gelu(x + bias)), what follows the first product of a BERT layer's MLP.

Formulas: kernels/bias_gelu.py.  x is that product, without its bias: so backward's sum over rows, dbias, is taken where
dx is computed, and no kernel reads dx again for it.  Backward is given x and bias; their sum is float32 in the kernels
and never rounded.

row_index counts the rows for the dropout mask, so that a packed batch drops what the padded one does; without it rows
count from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import FLOATS, check_one_device, wrong
from ..cost import bytes_of
from ..dropout import rows as row_dropout
from ..registry import Direction, Impl, Op
from . import composed, reference

# ------------------------------------------------------------------------------------------------------------- check


def _check(
    x: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, tanh: bool
) -> None:
    if x.dim() < 1 or x.shape[-1] == 0 or x.dtype not in FLOATS:
        raise ValueError(
            wrong(
                "x", f"{x.dtype} {tuple(x.shape)}", "float32, float16 or bfloat16 (..., n_cols) of at least one column"
            )
        )
    n_cols, device = x.shape[-1], x.device
    if (  # one pass for calls that are right; what is wrong with the others is found below
        row_index is None
        and rng_state is None
        and dropout_p == 0.0
        and (
            bias is None
            or (bias.shape == (n_cols,) and bias.dtype in (x.dtype, torch.float32) and bias.device == device)
        )
    ):
        return
    if bias is not None and (bias.shape != (n_cols,) or bias.dtype not in (x.dtype, torch.float32)):
        raise ValueError(wrong("bias", f"{bias.dtype} {tuple(bias.shape)}", f"{x.dtype} or float32 ({n_cols},)"))
    row_dropout.check(row_index, rng_state, dropout_p, math.prod(x.shape[:-1]))
    check_one_device("x", x.device, bias=bias, row_index=row_index, rng_state=rng_state)


def _check_bwd(
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
    _check(x, bias, row_index, rng_state, dropout_p, tanh)
    if dout.shape != x.shape or dout.dtype not in FLOATS or dout.device != x.device:
        raise ValueError(
            wrong(
                "dout",
                f"{dout.dtype} {tuple(dout.shape)} on {dout.device}",
                f"float32, float16 or bfloat16 {tuple(x.shape)} on {x.device}",
            )
        )
    if needs_dbias and bias is None:
        raise ValueError(wrong("needs_dbias", "True", "False without bias"))


# -------------------------------------------------------------------------------------------------------------- fakes


def _fake(
    x: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, tanh: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _fake_bwd(
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    needs_dx: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape if needs_dx else (0,))
    return dx, x.new_empty((0,)) if bias is None or not needs_dbias else bias.new_empty(bias.shape)


# ------------------------------------------------------------------------------------------------------ cost and row


def _cost(
    x: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, tanh: bool
) -> tuple[float, float]:
    """About 20 per element, most of them erf's polynomial; every tensor once."""
    return 20.0 * x.numel(), bytes_of(x, x, bias, row_index)


def _cost_bwd(
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    needs_dx: bool,
    needs_dbias: bool,
) -> tuple[float, float]:
    """About 30 per element; every tensor once, and the gradients that are needed."""
    written = bytes_of(x if needs_dx else None, bias if needs_dbias else None)
    return 30.0 * x.numel(), bytes_of(dout, x, bias, row_index) + written


def _supports(x: Tensor) -> str | None:
    n_cols = x.shape[-1]
    if max(n_cols, x.numel() // max(n_cols, 1)) >= 2**31 - 2048:  # a tile may reach beyond the tensor
        return f"rows and columns are counted in 32 bits, x has shape {tuple(x.shape)}"
    return None


_TENSORS = "Tensor x, Tensor? bias, Tensor? row_index, Tensor? rng_state, float dropout_p, bool tanh"

BIAS_GELU = Op(
    "bias_gelu",
    about="GELU (erf or tanh) of x + bias, then dropout; backward computes dbias in the same pass",
    fwd=Direction(
        f"({_TENSORS}, str backend) -> Tensor out",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
    ),
    bwd=Direction(
        f"(Tensor dout, {_TENSORS}, bool needs_dx, bool needs_dbias, str backend) -> (Tensor dx, Tensor dbias)",
        _check_bwd,
        _fake_bwd,
        composed.backward,
        reference.backward,
        ("x",),
        _cost_bwd,
    ),
    impls=(
        Impl("triton", "fasttx.kernels.bias_gelu:bias_gelu_fwd", "fasttx.kernels.bias_gelu:bias_gelu_bwd", _supports),
        Impl("cuda", "fasttx.ops.bias_gelu.cuda:bias_gelu_fwd", "fasttx.ops.bias_gelu.cuda:bias_gelu_bwd", _supports),
    ),
)


def keep_of(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float, backend: str) -> Tensor:
    """The mask that the op applies to x under `backend`."""
    if BIAS_GELU.choice(backend, x) is None:
        return composed.drawn_keep(x, row_index, rng_state, dropout_p)
    return composed.exact_keep(x, row_index, rng_state, dropout_p)
