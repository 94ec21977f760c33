"""Small calls of softmax."""

from __future__ import annotations

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    yield "check", (draw.randn(6, 1000), None, None, 0.5, 0.0, False)
    x = draw.randn(2, 3, 5, 37)
    keys = (draw.arange(37) < draw.tensor([[37], [11]]))[:, None, None, :]
    bias = draw.randn(1, 3, 5, 1)
    yield "plain", (x, None, None, 1.0, 0.0, False)
    yield "log-mask", (x, keys, None, 1.0, 0.0, True)
    yield "bias-dropout", (x, bias, draw.rng_state(), 2.0, 0.25, False)
    yield "strided", (x.transpose(1, 3), None, None, 0.5, 0.0, False)
    yield "empty", (x[:0], None, None, 1.0, 0.0, False)
    yield "smallest", (draw.randn(2, 8), None, None, 1.0, 0.0, False)


def large(draw: Draw) -> Cases:
    """Rows of several blocks, in forward and in backward."""
    x = draw.randn(2, 33000)
    yield "long", (x, None, None, 2.0, 0.0, False)
    keys = draw.arange(16500) < 13000
    yield "long-mask-dropout", (x[:, :16500], keys[None], draw.rng_state(), 2.0, 0.25, False)
