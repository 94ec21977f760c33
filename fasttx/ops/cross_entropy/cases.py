"""Small calls of cross_entropy."""

from __future__ import annotations

from ..cases import Cases, Draw

REPEATED = ("mean",)
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    # more columns than a block has; labels before the first and behind the last whole vector of their rows
    far = draw.tensor([3, -100, 5000, 0, 17])
    yield "check", (draw.randn(5, 5001), far, None, -100, 0.1, 1)
    logits, target = draw.randn(5, 37), draw.tensor([3, -100, 36, 0, 17])
    probabilities = draw.rand(5, 37).softmax(-1).to(draw.dtype)
    yield "mean", (logits, target, None, -100, 0.0, 1)
    yield "none-weight-smoothing", (logits, target, draw.rand(37) + 0.5, -100, 0.1, 0)
    yield "probabilities", (logits, probabilities, None, -100, 0.1, 2)
    yield "strided", (draw.randn(5, 50)[:, 3:40], target.clamp(0), None, 36, 0.0, 1)
    yield "empty", (logits[:0], target[:0], None, -100, 0.0, 2)
    yield "smallest", (draw.randn(2, 8), draw.tensor([3, 5]), None, -100, 0.0, 1)


def large(draw: Draw) -> Cases:
    target = draw.tensor([3, -100, 299, 0, 17])
    yield "wide-weight-smoothing", (draw.randn(5, 300), target, draw.rand(300) + 0.5, -100, 0.1, 1)


def many_rows(draw: Draw) -> Cases:
    """More than one step of the kernel that adds up their losses."""
    target = (draw.arange(1030) * 37) % 257
    target[::5] = -100
    yield "many-rows", (draw.randn(1030, 257), target, None, -100, 0.0, 1)
