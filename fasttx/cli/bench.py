"""``fasttx bench``: the benchmarks of ``fasttx.bench`` by name, with a progress bar."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Benchmark(str, Enum):
    """What can be measured; each is a module of fasttx.bench with a main of its own."""

    kernels = "kernels"
    model = "model"
    serving = "serving"
    host = "host"
    padding = "padding"


def bench(
    context: typer.Context,
    benchmark: Annotated[Benchmark, typer.Argument(help="kernels, model, serving, host or padding")],
) -> None:
    """Measure ops, models, requests, host costs or padding removal, beside PyTorch's and transformers' own.

    What follows the name goes to that benchmark: `fasttx bench kernels --help` lists its options, among them --out, the
    CSV that is written, and --quick. A result is compared with a higher precision before it is timed, and a row that is
    wrong has no time. Exit code 1 means that something of fasttx was wrong or failed, 2 a wrong option.
    """
    module = importlib.import_module(f"fasttx.bench.{benchmark.value}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def watch(items: Sequence[Any]) -> Iterator[Any]:
        with Progress(*columns, transient=True) as progress:  # lines that are printed meanwhile stay above the bar
            yield from progress.track(items, description=f"bench {benchmark.value}")

    raise typer.Exit(module.main(context.args, watch=watch))
