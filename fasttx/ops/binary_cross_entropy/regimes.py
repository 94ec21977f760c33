"""Regimes of binary_cross_entropy: how many elements."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..cases import Draw
from ..regimes import FEW, Axis, Example, Regimes

ELEMENTS = Axis(("few elements", "many elements"), (1 << 20,), (1 << 16, 1 << 23))


def numbers(x: Tensor, target: Tensor) -> tuple[int]:
    return (x.numel(),)


def examples(draw: Draw, few: bool, elements: int) -> Iterator[Example]:
    x = draw.randn(FEW if few else elements // 1024, 1024)
    yield "plain", (x, (x > 0.3).to(draw.dtype), None, None, 1)


REGIMES = Regimes(numbers, (ELEMENTS,), ("few elements",), examples)
