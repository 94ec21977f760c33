"""Small calls of dropout_add_layer_norm."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw

REPEATED = ("plain",)
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    dtype = draw.dtype
    x, residual = draw.randn(2, 37, 384), draw.randn(2, 37, 384)
    yield "check", (x, residual, draw.randn(384), draw.randn(384), None, None, 0.0, 1e-12, dtype)
    x, residual, weight, bias = draw.randn(2, 5, 37), draw.randn(2, 5, 37), draw.randn(37), draw.randn(37)
    numbers = draw.tensor([3, 1, 70, 2, 9] * 2, torch.int32)
    yield "plain", (x, None, weight, bias, None, None, 0.0, 1e-5, dtype)
    yield "residual-dropout", (x, residual, weight, bias, None, draw.rng_state(), 0.25, 1e-5, dtype)
    yield "residual", (x, residual.float(), weight.float(), None, None, None, 0.0, 1e-12, torch.float32)
    yield "numbered", (x, None, None, bias, numbers, draw.rng_state(), 0.1, 1e-5, dtype)
    wide = draw.randn(2, 5, 41)[..., 3:40]
    across = residual.transpose(0, 1).contiguous().transpose(0, 1)
    yield "strided", (wide, across, None, None, None, None, 0.0, 0.1, dtype)
    yield "empty", (x[:0], residual[:0], weight, bias, None, None, 0.0, 1e-5, dtype)
    row = draw.randn(8), draw.randn(8)
    yield "smallest", (draw.randn(2, 8), draw.randn(2, 8), *row, None, None, 0.0, 1e-5, dtype)


def many_rows(draw: Draw) -> Cases:
    """More tiles than programs."""
    x, residual, weight, bias = draw.randn(300, 1100), draw.randn(300, 1100), draw.randn(1100), draw.randn(1100)
    yield "many-rows", (x, residual, weight, bias, None, draw.rng_state(), 0.25, 1e-5, draw.dtype)
