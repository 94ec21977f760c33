"""Regimes of add_layer_norm_quantize: those of dropout_add_layer_norm."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..dropout_add_layer_norm.regimes import COLUMNS
from ..regimes import FEW, ROWS, Example, Regimes, rows_and_columns


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows = FEW if few else n_rows
    x, residual = draw.randn(rows, n_cols), draw.randn(rows, n_cols)
    yield "plain", (x, residual, draw.randn(n_cols), draw.randn(n_cols), None, 1e-12, draw.dtype)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("to 1024 cols", "many rows"), examples)
