"""``fasttx plot``: the tables of ``fasttx bench`` as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    tables: Annotated[list[Path], typer.Argument(help="CSV files that fasttx bench kernels or model wrote")],
    out: Annotated[Path, typer.Option(help="where the pictures go")] = Path("plots"),
) -> None:
    """Draw speed-up bars and throughput by length from benchmark tables.

    From a table of kernels one bar a workload and peer, and attention's TFLOP/s by sequence length; from a table of
    models one bar a case and arm, and tokens a second by padded length. Rows without a time are left out, and counted
    in the title.
    """
    from ..bench.plots import TableError, draw

    try:
        written = [path for table in tables for path in draw(table, out)]
    except TableError as problem:
        raise typer.BadParameter(str(problem)) from None
    for path in written:
        typer.echo(path)
