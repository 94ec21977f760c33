"""Regimes of int8_linear: how many rows, and how large the weight."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..cases import Draw
from ..regimes import FEW, Axis, Example, Regimes

WEIGHTS = Axis(("to 1M weights", "more weights"), (1 << 20,), (768 * 768, 768 * 3072))
ROWS = Axis(("to 64 rows", "to 1024 rows", "more rows"), (65, 1025), (32, 512, 16384))


def numbers(x_q: Tensor, w_q: Tensor) -> tuple[int, int]:
    return w_q.numel(), x_q.shape[0]


def examples(draw: Draw, few: bool, weights: int, n_rows: int) -> Iterator[Example]:
    rows, n_out = min(n_rows, FEW) if few else n_rows, weights // 768
    x_q, w_q = draw.int8(rows, 768), draw.int8(n_out, 768)
    scales = draw.rand(rows) / 99, draw.rand(n_out) / 99
    yield "plain", (x_q, w_q, *scales, draw.randn(n_out), None, "none", draw.dtype)
    yield "gelu", (x_q, w_q, *scales, draw.randn(n_out), None, "gelu", draw.dtype)


REGIMES = Regimes(numbers, (WEIGHTS, ROWS), ("more weights", "more rows"), examples)
