"""Regimes of bias_gelu: how long rows are, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..regimes import FEW, ROWS, Axis, Example, Regimes, rows_and_columns

COLUMNS = Axis(("to 2048 cols", "more cols"), (2049,), (1536, 3072))
"""The width within the MLP of MiniLM, and of BERT-base."""


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    x, bias = draw.randn(FEW if few else n_rows, n_cols), draw.randn(n_cols)
    yield "plain", (x, bias, None, None, 0.0, False)
    yield "dropout", (x, bias, None, draw.rng_state(), 0.1, False)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("more cols", "many rows"), examples)
