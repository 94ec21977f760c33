"""Small calls of bias_gelu."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw

REPEATED = ("plain", "bias-dropout")
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    yield "check", (draw.randn(37, 700), draw.randn(700), None, None, 0.0, False)
    x, bias = draw.randn(2, 5, 37), draw.randn(37)
    numbers = draw.tensor([3, 1, 70, 2, 9] * 2, torch.int32)
    yield "plain", (x, None, None, None, 0.0, False)
    yield "bias-dropout", (x, bias, None, draw.rng_state(), 0.25, True)
    yield "numbered", (x, bias.float(), numbers, draw.rng_state(), 0.1, False)
    yield "strided", (draw.randn(2, 5, 41)[..., 3:40], bias, None, None, 0.0, True)
    yield "empty", (x[:0], bias, None, None, 0.0, False)
    yield "smallest", (draw.randn(2, 8), draw.randn(8), None, None, 0.0, False)


def many_rows(draw: Draw) -> Cases:
    """More tiles than programs."""
    x, bias = draw.randn(270, 4096), draw.randn(4096)
    yield "many-rows", (x, bias, None, draw.rng_state(), 0.1, False)
