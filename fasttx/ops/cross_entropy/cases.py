"""Small calls of cross_entropy."""

from __future__ import annotations

from ..cases import Cases, Draw


def cases(draw: Draw) -> Cases:
    far = draw.tensor([3, -100, 4999, 0, 17])
    yield "check", (draw.randn(5, 5000), far, None, -100, 0.1, 1)  # more columns than a block has
    logits, target = draw.randn(5, 37), draw.tensor([3, -100, 36, 0, 17])
    probabilities = draw.rand(5, 37).softmax(-1).to(draw.dtype)
    yield "mean", (logits, target, None, -100, 0.0, 1)
    yield "none-weight-smoothing", (logits, target, draw.rand(37) + 0.5, -100, 0.1, 0)
    yield "probabilities", (logits, probabilities, None, -100, 0.1, 2)
    yield "strided", (draw.randn(5, 50)[:, 3:40], target.clamp(0), None, 36, 0.0, 1)
    yield "empty", (logits[:0], target[:0], None, -100, 0.0, 2)
    yield "smallest", (draw.randn(2, 8), draw.tensor([3, 5]), None, -100, 0.0, 1)
