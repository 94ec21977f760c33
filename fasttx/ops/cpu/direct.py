"""int8 kernels of fasttx._C_cpu called with addresses that are known beforehand: for layers that are captured.

An op of the table checks its arguments and chooses a backend at every call. In a captured layer neither can change from
one call to the next, and with one sentence both take longer than quantising. What would be lost is not: where somebody
looks on (a profiler, a mode, a record of decisions), or "auto" is not to take these kernels, :func:`taken` says so, and
the op itself is called.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import profiler

from .. import decisions, dispatch, tuned, verdicts
from ..add_layer_norm_quantize.op import ADD_LAYER_NORM_QUANTIZE
from ..backends import forced_backend
from ..int8_linear.op import ACTIVATIONS, INT8_LINEAR
from ..quantize_per_token.op import QUANTIZE_PER_TOKEN
from .launch import DTYPES, NOTHING, address, at, kernels, threads, why_not

OPS = (INT8_LINEAR, QUANTIZE_PER_TOKEN, ADD_LAYER_NORM_QUANTIZE)
_INT8, _QUANTIZE, _NORM = ((f"{op.name}_fwd", "cpu") for op in OPS)
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
_known: dict[torch.dtype, tuple[int, bool]] = {}
"""dtype -> the verdicts that the last question knew, and whether none of them is against the kernels."""

Rows = tuple[Tensor, Tensor]
"""Rows of int8 (n_rows, n_cols) and their scales, float32 (n_rows,)."""


def taken(x: Tensor) -> ModuleType | None:
    """The kernels, if every op here would run them on rows like x and nobody is to see the ops; else None."""
    if (
        type(x) is not Tensor
        or decisions.records
        or dispatch.around
        or profiler._is_profiler_enabled
        or dispatch._modes()
        or dispatch._function_modes()
        or dispatch._tracing() is not None
        or not x.numel()
        or not x.is_contiguous()
        or forced_backend() not in ("auto", "cpu")
        or why_not(x.device) is not None
        or tuned.has_any(x.device)  # each op asks what was measured for its rows
        or not _undisputed(x)
    ):
        return None
    return kernels()


def _undisputed(x: Tensor) -> bool:
    known = _known.get(x.dtype)
    if known is None or known[0] != verdicts.generation:
        known = verdicts.generation, all(verdicts.reason(op.name, "cpu", x) is None for op in OPS)
        _known[x.dtype] = known
    return known[1]


class Weight:
    """What of an int8 product stays the same from call to call: int8 (n_out, n_in), float32 (n_out,), bias or None."""

    def __init__(self, w_q: Tensor, w_scale: Tensor, bias: Tensor | None) -> None:
        self._held = w_q.contiguous(), w_scale.contiguous(), None if bias is None else bias.contiguous()
        self.n_out, self.n_in = w_q.shape
        self._at = self._held[0].data_ptr(), self._held[1].data_ptr(), at(self._held[2])

    def product(
        self, lib: ModuleType, rows: Rows, activation: str, residual: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """int8_linear_fwd; the residual is contiguous."""
        x_q, x_scale = rows
        n_rows, n_in = x_q.shape
        w_q, w_scale, bias = self._at
        out = x_scale.new_empty((n_rows, self.n_out), dtype=out_dtype)
        lib.int8_linear_fwd(
            *(out.data_ptr(), DTYPES[out_dtype], x_q.data_ptr(), w_q, x_scale.data_ptr(), w_scale),
            *(*bias, *(NOTHING if residual is None else at(residual)), n_rows, self.n_out, n_in, n_in, n_in),
            *(0 if residual is None else self.n_out, _NUMBERS[activation], threads()),
        )
        dispatch.LAUNCHES[_INT8] += 1
        return out


def quantized(lib: ModuleType, x: Tensor, scale: Tensor | None = None) -> Rows:
    """quantize_per_token_fwd of contiguous rows; `scale` is float32 (), or None for one of each row."""
    n_rows, n_cols = x.shape
    x_q, x_scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(n_rows, dtype=torch.float32)
    lib.quantize_per_token_fwd(
        x_q.data_ptr(), x_scale.data_ptr(), *at(x), address(scale), n_rows, n_cols, n_cols, threads()
    )
    dispatch.LAUNCHES[_QUANTIZE] += 1
    return x_q, x_scale


def norm_and_rows(
    lib: ModuleType, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, scale: Tensor | None = None
) -> tuple[Tensor, Rows]:
    """add_layer_norm_quantize_fwd of contiguous rows without a residual; weight and bias are contiguous, and `scale` is
    as in :func:`quantized`."""
    n_rows, n_cols = x.shape
    out, x_q = torch.empty_like(x), x.new_empty(x.shape, dtype=torch.int8)
    x_scale = x.new_empty(n_rows, dtype=torch.float32)
    lib.add_layer_norm_quantize_fwd(
        *(*at(out), x_q.data_ptr(), x_scale.data_ptr(), *at(x), *NOTHING, *at(weight), *at(bias), address(scale)),
        *(n_rows, n_cols, n_cols, 0, eps, threads()),
    )
    dispatch.LAUNCHES[_NORM] += 1
    return out, (x_q, x_scale)
