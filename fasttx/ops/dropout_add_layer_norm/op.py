"""The row of dropout_add_layer_norm: out = layer_norm(dropout(x) + residual) weight + bias over the last dim.

Formulas: kernels/dropout_add_layer_norm.py.  Backward is given x and residual, not their sum: the sum would have to be
written in forward to be read in backward, as many bytes as reading two tensors that exist anyway, and rounded to their
dtype.  Statistics and sums are float32 in every implementation; each gradient has the dtype of its own tensor.

row_index counts the rows for the dropout mask, so that a packed batch drops what the padded one does; without it rows
count from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import FLOATS, check_one_device, row_too_long, wrong
from ..cost import bytes_of
from ..dropout import rows as row_dropout
from ..registry import Direction, Impl, Op
from . import composed, reference

MAX_COLS = 8192
"""The longest row that the kernels hold in registers."""

# ------------------------------------------------------------------------------------------------------------- check


def _check_tensors(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
) -> None:
    if x.dim() < 1 or x.shape[-1] == 0 or x.dtype not in FLOATS:
        raise ValueError(
            wrong(
                "x", f"{x.dtype} {tuple(x.shape)}", "float32, float16 or bfloat16 (..., n_cols) of at least one column"
            )
        )
    shape, device = x.shape, x.device
    row = shape[-1:]
    if (  # one pass for calls that are right; what is wrong with the others is found below
        row_index is None
        and (residual is None or (residual.shape == shape and residual.dtype in FLOATS and residual.device == device))
        and (weight is None or (weight.shape == row and weight.dtype in FLOATS and weight.device == device))
        and (bias is None or (bias.shape == row and bias.dtype in FLOATS and bias.device == device))
        and (
            dropout_p == 0.0
            if rng_state is None
            else 0.0 < dropout_p < 1.0
            and rng_state.dtype == torch.int64
            and rng_state.shape == (2,)
            and rng_state.device == device
        )
    ):
        return
    for name, t, shape in (("residual", residual, x.shape), ("weight", weight, row), ("bias", bias, row)):
        if t is not None and (t.shape != shape or t.dtype not in FLOATS):
            raise ValueError(wrong(name, f"{t.dtype} {tuple(t.shape)}", f"float32, float16 or bfloat16 {tuple(shape)}"))
    row_dropout.check(row_index, rng_state, dropout_p, math.prod(x.shape[:-1]))
    check_one_device(
        "x", x.device, residual=residual, weight=weight, bias=bias, row_index=row_index, rng_state=rng_state
    )


def _check(
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
    _check_tensors(x, residual, weight, bias, row_index, rng_state, dropout_p)
    if not 0.0 <= eps < math.inf:
        raise ValueError(wrong("eps", eps, "a finite number, not negative"))
    if out_dtype not in FLOATS:
        raise ValueError(wrong("out_dtype", out_dtype, "float32, float16 or bfloat16"))


def _check_bwd(
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
    _check_tensors(x, residual, weight, bias, row_index, rng_state, dropout_p)
    if dout.shape != x.shape or dout.dtype not in FLOATS or dout.device != x.device:
        raise ValueError(
            wrong(
                "dout",
                f"{dout.dtype} {tuple(dout.shape)} on {dout.device}",
                f"float32, float16 or bfloat16 {tuple(x.shape)} on {x.device}",
            )
        )
    n_rows = math.prod(x.shape[:-1])
    for name, t in (("mean", mean), ("rstd", rstd)):
        if t.shape != (n_rows,) or t.dtype != torch.float32 or t.device != x.device:
            raise ValueError(wrong(name, f"{t.dtype} {tuple(t.shape)}", f"float32 ({n_rows},) on {x.device}"))
    for name, needed, owner in (
        ("residual", needs_dresidual, residual),
        ("weight", needs_dweight, weight),
        ("bias", needs_dbias, bias),
    ):
        if needed and owner is None:
            raise ValueError(wrong(f"needs_d{name}", "True", f"False without {name}"))


# -------------------------------------------------------------------------------------------------------------- fakes


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = math.prod(x.shape[:-1])  # numel() would make constants of sizes that a graph has as symbols
    mean, rstd = x.new_empty((n_rows,), dtype=torch.float32), x.new_empty((n_rows,), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=out_dtype), mean, rstd


def _fake_bwd(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs_dx else (0,)),
        residual.new_empty(residual.shape) if needs_dresidual and residual is not None else x.new_empty((0,)),
        weight.new_empty(weight.shape) if needs_dweight and weight is not None else x.new_empty((0,)),
        bias.new_empty(bias.shape) if needs_dbias and bias is not None else x.new_empty((0,)),
    )


# ------------------------------------------------------------------------------------------------------ cost and row


def _cost(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[float, float]:
    """Dropout, sum, mean, differences, squares, variance, scale, weight, bias: 10 per element; every tensor once."""
    statistics = 8.0 * math.prod(x.shape[:-1])
    return 10.0 * x.numel(), bytes_of(
        x, residual, weight, bias, row_index
    ) + x.numel() * out_dtype.itemsize + statistics


def _cost_bwd(
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
) -> tuple[float, float]:
    """About 14 per element; every tensor once, and the gradients that are needed."""
    written = bytes_of(
        x if needs_dx else None,
        residual if needs_dresidual else None,
        weight if needs_dweight else None,
        bias if needs_dbias else None,
    )
    return 14.0 * x.numel(), bytes_of(dout, x, residual, weight, mean, rstd, row_index) + written


def supports(x: Tensor) -> str | None:
    return None if x.shape[-1] <= MAX_COLS and x.numel() < 2**31 else row_too_long(x, MAX_COLS)


_TENSORS = "Tensor x, Tensor? residual, Tensor? weight, Tensor? bias"
_MASK = "Tensor? row_index, Tensor? rng_state, float dropout_p"
_NEEDS = "bool needs_dx, bool needs_dresidual, bool needs_dweight, bool needs_dbias"

DROPOUT_ADD_LAYER_NORM = Op(
    "dropout_add_layer_norm",
    about="layer norm of dropout(x) + residual, or of x; rows of up to 8,192",
    fwd=Direction(
        f"({_TENSORS}, {_MASK}, float eps, ScalarType out_dtype, str backend)"
        " -> (Tensor out, Tensor mean, Tensor rstd)",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
    ),
    bwd=Direction(
        f"(Tensor dout, {_TENSORS}, Tensor mean, Tensor rstd, {_MASK}, {_NEEDS}, str backend)"
        " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
        _check_bwd,
        _fake_bwd,
        composed.backward,
        reference.backward,
        ("x",),
        _cost_bwd,
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.dropout_add_layer_norm:dropout_add_layer_norm_fwd",
            "fasttx.kernels.dropout_add_layer_norm:dropout_add_layer_norm_bwd",
            supports,
        ),
        Impl(
            "cuda",
            "fasttx.ops.dropout_add_layer_norm.cuda:dropout_add_layer_norm_fwd",
            "fasttx.ops.dropout_add_layer_norm.cuda:dropout_add_layer_norm_bwd",
            supports,
        ),
    ),
)


def keep_of(x: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float, backend: str) -> Tensor:
    """The mask that the op applies to x under `backend`."""
    if DROPOUT_ADD_LAYER_NORM.choice(backend, x) is None:
        return composed.drawn_keep(x, row_index, rng_state, dropout_p)
    return composed.exact_keep(x, row_index, rng_state, dropout_p)
