"""Regimes of bias_gelu_quantize: those of bias_gelu."""

from __future__ import annotations

from collections.abc import Iterator

from ..bias_gelu.regimes import COLUMNS
from ..cases import Draw
from ..regimes import FEW, ROWS, Example, Regimes, rows_and_columns


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    yield "plain", (draw.randn(FEW if few else n_rows, n_cols), draw.randn(n_cols), None, False)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("more cols", "many rows"), examples)
