"""Regimes of softmax: how long rows are, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..regimes import FEW, ROWS, Axis, Example, Regimes, rows_and_columns

COLUMNS = Axis(("to 512 cols", "to 4096 cols", "more cols"), (513, 4097), (256, 1024, 16384))


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    x = draw.randn(FEW if few else min(n_rows, (1 << 26) // n_cols), n_cols)
    yield "plain", (x, None, None, 1.0, 0.0, False)
    yield "dropout", (x, None, draw.rng_state(), 1.0, 0.1, False)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("to 4096 cols", "many rows"), examples)
