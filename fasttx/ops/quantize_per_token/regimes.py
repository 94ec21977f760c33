"""Regimes of quantize_per_token: those of dropout_add_layer_norm."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..dropout_add_layer_norm.regimes import COLUMNS
from ..regimes import FEW, ROWS, Example, Regimes, rows_and_columns


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    yield "plain", (draw.randn(FEW if few else n_rows, n_cols), None)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("to 1024 cols", "many rows"), examples)
