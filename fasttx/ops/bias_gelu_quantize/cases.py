"""Small calls of bias_gelu_quantize."""

from __future__ import annotations

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    yield "check", (draw.randn(37, 700), draw.randn(700), None, False)
    x, bias = draw.randn(2, 5, 37), draw.randn(37)
    yield "plain", (x, None, None, False)
    yield "bias-static", (x, bias, draw.tensor(0.02), True)
    yield "float-bias", (x, bias.float(), None, False)
    yield "strided", (draw.randn(2, 5, 41)[..., 3:40], bias, None, True)
    yield "empty", (x[:0], bias, None, False)
    yield "smallest", (draw.randn(2, 8), draw.randn(8), None, False)
