"""Small calls of linear_cross_entropy."""

from __future__ import annotations

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    far = draw.tensor([3, -100, 4999, 0, 17])
    x, weight = draw.randn(5, 32), draw.randn(5000, 32) / 4
    yield "check", (x, weight, draw.randn(5000), far, None, -100, 0.1, 1)  # more classes than a block has columns
    x, weight, bias = draw.randn(5, 16), draw.randn(37, 16) / 4, draw.randn(37)
    target = draw.tensor([3, -100, 36, 0, 17])
    yield "mean", (x, weight, bias, target, None, -100, 0.0, 1)
    yield "none-weight-smoothing", (x, weight, None, target, draw.rand(37) + 0.5, -100, 0.1, 0)
    yield "sum-strided", (x[:, 3:], weight[:, :13], bias, target.clamp(0), None, 36, 0.0, 2)
    yield "empty", (x[:0], weight, bias, target[:0], None, -100, 0.0, 1)
    yield "smallest", (draw.randn(2, 8), draw.randn(8, 8), None, draw.tensor([3, 5]), None, -100, 0.0, 1)
