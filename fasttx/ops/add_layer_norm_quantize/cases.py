"""Small calls of add_layer_norm_quantize."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    dtype = draw.dtype
    x, residual = draw.randn(2, 37, 384), draw.randn(2, 37, 384)
    yield "check", (x, residual, draw.randn(384), draw.randn(384), None, 1e-12, dtype)
    x, residual, weight, bias = draw.randn(2, 5, 37), draw.randn(2, 5, 37), draw.randn(37), draw.randn(37)
    yield "plain", (x, None, weight, bias, None, 1e-5, dtype)
    yield "residual-static", (x, residual, weight, bias, draw.tensor(0.02), 1e-5, dtype)
    yield "mixed", (x, residual.float(), weight.float(), None, None, 1e-12, torch.float32)
    wide = draw.randn(2, 5, 41)[..., 3:40]
    across = residual.transpose(0, 1).contiguous().transpose(0, 1)
    yield "strided", (wide, across, None, None, None, 0.1, dtype)
    yield "empty", (x[:0], residual[:0], weight, bias, None, 1e-5, dtype)
    yield "smallest", (draw.randn(2, 8), draw.randn(2, 8), draw.randn(8), draw.randn(8), None, 1e-5, dtype)


def large(draw: Draw) -> Cases:
    """Rows whose numbers are equal: what is left of them is rounding, and must not count beyond their end."""
    x, bias = draw.randn(9, 1).expand(9, 37).contiguous(), draw.randn(37) / 1000
    yield "constant-rows", (x, None, None, bias, None, 1e-12, draw.dtype)
