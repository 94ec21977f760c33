"""Regimes of linear_cross_entropy: how many classes, and how many rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..cases import Draw
from ..regimes import FEW, Axis, Example, Regimes

CLASSES = Axis(("to 65536 classes", "more classes"), (65537,), (30522, 250002))
ROWS = Axis(("few rows", "many rows"), (1024,), (512, 2048))


def numbers(x: Tensor, weight: Tensor, target: Tensor) -> tuple[int, int]:
    return weight.shape[0], x.shape[0]


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows, width = FEW if few else n_rows, 768
    x, weight = draw.randn(rows, width), draw.randn(n_cols, width) * width**-0.5
    target = draw.arange(rows) * 7919 % n_cols
    target[::7] = -100
    yield "plain", (x, weight, draw.randn(n_cols), target, None, -100, 0.0, 1)


REGIMES = Regimes(numbers, (CLASSES, ROWS), ("to 65536 classes", "many rows"), examples)
