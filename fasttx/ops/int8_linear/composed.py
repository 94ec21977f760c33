"""int8_linear composed of PyTorch's own operators, with a product that is exact whatever computes it."""

from __future__ import annotations

import contextlib
import functools

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

EXACT_COLS = 1024
"""Columns that float32 sums exactly: 1,024 products of at most 2**14 in magnitude give at most 2**24, and float32 holds
every integer up to there. Where float32 products run in TF32 or bfloat16 the factors, of 8 bits, are exact as well."""
GELU = {"gelu": "none", "gelu_tanh": "tanh"}


@functools.cache
def _cpu_has_int8_dot_products() -> bool:
    """Whether _int_mm is the faster one on a CPU: without VNNI it took 30 times float32's time where it was tried."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


def _as_cuda_wants(x_q: Tensor, w_q: Tensor) -> tuple[Tensor, Tensor]:
    """Padded with zeros: torch._int_mm on CUDA takes more than 16 rows, and columns in multiples of 8."""
    (n_rows, n_in), n_out = x_q.shape, w_q.shape[0]
    more_in, more_out = -n_in % 8, -n_out % 8
    if more_in or n_rows < 17:
        x_q = torch_functional.pad(x_q, (0, more_in, 0, max(17 - n_rows, 0)))
    if more_in or more_out:
        w_q = torch_functional.pad(w_q, (0, more_in, 0, more_out))
    return x_q.contiguous(), w_q.contiguous()


def _by_int_mm(x_q: Tensor, w_q: Tensor) -> Tensor:
    n_rows, n_out = x_q.shape[0], w_q.shape[0]
    if x_q.device.type == "cuda":
        x_q, w_q = _as_cuda_wants(x_q, w_q)
    return torch._int_mm(x_q, w_q.t())[:n_rows, :n_out]


def _by_float32(x_q: Tensor, w_q: Tensor) -> Tensor:
    """Exact products of EXACT_COLS columns at a time, added up as int32 where there are several."""
    n_in = x_q.shape[1]
    device = x_q.device.type
    autocast = torch.is_autocast_enabled(device)  # it would round the products to half precision
    with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
        if n_in <= EXACT_COLS:
            return torch.mm(x_q.float(), w_q.float().t())
        acc = None
        for first in range(0, n_in, EXACT_COLS):
            part = torch.mm(x_q[:, first : first + EXACT_COLS].float(), w_q[:, first : first + EXACT_COLS].float().t())
            acc = part.int() if acc is None else acc.add_(part.int())
    assert acc is not None
    return acc


def product(x_q: Tensor, w_q: Tensor) -> Tensor:
    """x_q w_q^T as int32, or as float32 that holds the same integers."""
    device = x_q.device.type
    if torch.compiler.is_exporting():  # for any machine and runtime
        return _by_float32(x_q, w_q)
    # one column: _int_mm's result was memory that nobody had written (torch 2.13, a CPU with VNNI)
    if device == "cuda" or (device == "cpu" and _cpu_has_int8_dot_products() and x_q.shape[1] > 1):
        return _by_int_mm(x_q, w_q)
    return _by_float32(x_q, w_q)


def forward(
    x_q: Tensor,
    w_q: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    acc = product(x_q, w_q) if x_q.numel() else x_q.new_zeros((x_q.shape[0], w_q.shape[0]), dtype=torch.float32)
    out = acc.float().mul_(x_scale[:, None])
    out = out.mul_(w_scale) if bias is None else torch.addcmul(bias.float(), out, w_scale)
    if activation != "none":
        out = torch_functional.gelu(out, approximate=GELU[activation])
    if residual is not None:
        out.add_(residual)
    return out.to(out_dtype)
