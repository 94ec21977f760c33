"""Small calls of quantize_per_token."""

from __future__ import annotations

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    yield "check", (draw.randn(37, 384), None)
    x = draw.randn(2, 5, 37)
    x[0, 1] = 0.0  # NaN, which opcheck cannot compare: tests/ops/test_quantize_per_token.py
    x[1, 3] = (draw.arange(37) - 18) / 2  # ties, with the 127 below
    x[1, 3, 0] = 127.0
    yield "plain", (x, None)
    yield "static", (x, draw.tensor(0.02))
    yield "strided", (x.transpose(0, 2), None)
    yield "empty", (x[:0], None)
    yield "smallest", (draw.randn(2, 8), None)


def large(draw: Draw) -> Cases:
    x = draw.randn(5, 50)[:, 3:40]
    x[1, 5], x[3, 0] = float("inf"), float("nan")
    yield "rows-apart-not-finite", (x, None)
