"""Small calls of int8_linear."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    dtype = draw.dtype
    x_q, w_q = draw.int8(70, 200), draw.int8(130, 200)  # more rows and columns than a block has
    x_scale, w_scale = draw.rand(70) / 99, draw.rand(130) / 99
    yield "check", (x_q, w_q, x_scale, w_scale, draw.randn(130), None, "gelu", dtype)
    x_q, w_q, x_scale, w_scale = draw.int8(19, 70), draw.int8(37, 70), draw.rand(19) / 99, draw.rand(37) / 99
    x_q[0], w_q[0] = -128, -128
    bias, residual = draw.randn(37), draw.randn(19, 37)
    yield "plain", (x_q, w_q, x_scale, w_scale, None, None, "none", dtype)
    yield "gelu", (x_q, w_q, x_scale, w_scale, bias, None, "gelu", dtype)
    yield "gelu_tanh-residual", (x_q, w_q, x_scale, w_scale, bias.float(), residual, "gelu_tanh", dtype)
    wide = draw.int8(19, 99)[:, 3:67]
    yield "strided", (wide, w_q[:, 6:], x_scale, w_scale, None, residual.t().contiguous().t(), "none", dtype)
    yield "empty", (x_q[:0], w_q, x_scale[:0], w_scale, bias, None, "gelu", dtype)
    ones = torch.ones(8, 8, dtype=torch.int8, device=draw.device)
    yield "smallest", (ones[:2], ones, draw.rand(2), draw.rand(8), None, None, "none", dtype)


def large(draw: Draw) -> Cases:
    """More blocks of rows than run in one group."""
    x_q, w_q = draw.int8(1100, 32), draw.int8(130, 32)
    x_scale, w_scale = draw.rand(1100) / 99, draw.rand(130) / 99
    yield "many-blocks", (x_q, w_q, x_scale, w_scale, None, None, "none", draw.dtype)
