"""Small calls of binary_cross_entropy."""

from __future__ import annotations

from ..cases import Cases, Draw

REPEATED = ("mean",)
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    x = draw.randn(37, 29)
    yield "check", (x, (x > 0.3).to(draw.dtype), None, draw.randn(29).abs(), 1)
    x, target = draw.randn(5, 37), draw.rand(5, 37, dtype=draw.dtype)
    weight, pos_weight = draw.rand(5, 1, dtype=draw.dtype), draw.rand(37, dtype=draw.dtype)
    yield "mean", (x, target, None, None, 1)
    yield "none-weights", (x, target, weight, pos_weight, 0)
    yield "sum-strided", (x.T, target.T, None, None, 2)
    yield "empty", (x[:0], target[:0], None, None, 2)
    x = draw.randn(2, 8)
    yield "smallest", (x, (x > 0).to(draw.dtype), None, None, 1)
