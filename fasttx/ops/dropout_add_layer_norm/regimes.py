"""Regimes of dropout_add_layer_norm: how long rows are, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..regimes import FEW, ROWS, Axis, Example, Regimes, rows_and_columns

COLUMNS = Axis(("to 512 cols", "to 1024 cols", "more cols"), (513, 1025), (384, 768, 4096))
"""The widths of MiniLM, of BERT-base and BERT-large, and of more."""


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows = FEW if few else n_rows
    x, residual = draw.randn(rows, n_cols), draw.randn(rows, n_cols)
    tail = (residual, draw.randn(n_cols), draw.randn(n_cols), None)
    yield "plain", (x, *tail, None, 0.0, 1e-12, draw.dtype)
    yield "dropout", (x, *tail, draw.rng_state(), 0.1, 1e-12, draw.dtype)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("to 1024 cols", "many rows"), examples)
