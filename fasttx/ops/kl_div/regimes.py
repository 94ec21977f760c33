"""Regimes of kl_div: how long rows are, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from ..cases import Draw
from ..regimes import FEW, ROWS, Axis, Example, Regimes, rows_and_columns

COLUMNS = Axis(("to 1024 cols", "more cols"), (1025,), (128, 30522))


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows = FEW if few else min(n_rows, 4096) if n_cols > 1024 else n_rows
    x, target = (draw.randn(rows, n_cols).log_softmax(-1) for _ in range(2))
    yield "plain", (x, target, 3, True)


REGIMES = Regimes(rows_and_columns, (COLUMNS, ROWS), ("more cols", "many rows"), examples)
