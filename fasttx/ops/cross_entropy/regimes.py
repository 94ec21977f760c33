"""Regimes of cross_entropy: how many classes, and how many rows."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..regimes import FEW, ROWS, Axis, Example, Regimes, rows_and_columns

CLASSES = Axis(("to 1024 classes", "to 65536 classes", "more classes"), (1025, 65537), (32, 30522, 250002))
"""Labels of a classifier; the vocabularies of BERT and of XLM-RoBERTa."""


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows = FEW if few else n_rows if n_rows <= 512 or n_cols < 1024 else 4096 if n_cols < 65536 else 2048
    target = draw.arange(rows) * 7919 % n_cols
    target[::7] = -100
    yield "plain", (draw.randn(rows, n_cols), target, None, -100, 0.0, 1)


REGIMES = Regimes(rows_and_columns, (CLASSES, ROWS), ("to 65536 classes", "many rows"), examples)
