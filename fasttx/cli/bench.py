"""``fasttx bench``: the benchmarks of ``fasttx.bench`` by name; each shows how far it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from typer.core import TyperCommand


class Benchmark(str, Enum):
    """What can be measured; each is a module of fasttx.bench with a main of its own."""

    kernels = "kernels"
    model = "model"
    serving = "serving"
    host = "host"
    padding = "padding"
    cpu = "cpu"
    int8 = "int8"
    own = "own"
    report = "report"


class Passing(TyperCommand):
    """A command that hands on the options after its argument; its usage line says so."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["BENCHMARK", "[OPTIONS OF IT]..."]


def bar(what: str, console: Console) -> Callable[..., Iterator[Any]]:
    """What shows in a terminal how far a benchmark is; lines that it prints meanwhile stay above the bar."""
    room = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what a long name may take: the figures stay whole
    called = TextColumn("{task.description}", table_column=room)
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (SpinnerColumn(), called, BarColumn(12), MofNCompleteColumn(), *times)

    def watch(items: Sequence[Any], name: Callable[[Any], str] | None = None) -> Iterator[Any]:
        from ..bench.progress import name_of

        printed = sys.stdout.isatty()  # else it goes to a file, and must not be taken there by the bar
        options: dict[str, Any] = {"transient": True, "expand": True, "redirect_stdout": printed}
        with Progress(*columns, console=console, **options) as progress:
            task = progress.add_task(what, total=len(items))
            for item in items:
                called = (name or name_of)(item)
                progress.update(task, description=f"{what}: {called}" if called else what)
                yield item
                progress.advance(task)

    return watch


def bench(
    context: typer.Context,
    benchmark: Annotated[Benchmark, typer.Argument(metavar="BENCHMARK", help="what to measure")],
) -> None:
    """Measure fasttx beside PyTorch, transformers and their compilers.

    kernels: each op.  model: a step of BERT and MiniLM; "training" is a masked language model with AdamW.
    serving: embedding requests.  host: what a call costs in Python.  padding: what skipping it gains.
    cpu: MiniLM and BERT on a CPU beside ONNX Runtime, OpenVINO and torch.compile.
    int8: how near MiniLM on int8 comes to float32, by the ways of fasttx.Int8Config.
    own: your own model on your own texts, as in `fasttx bench own DIR --texts FILE`.
    report: results beside the goals, as a page with pictures, as in `fasttx bench report results`.

    `fasttx bench model --help` lists the options of one: --out FILE.csv, --quick, --seconds and more. Every result is
    checked against a higher precision before it is timed; a wrong one gets no time. Exit code 1: something of fasttx
    was wrong or failed. 2: a wrong option.
    """
    from ..bench.options import parser_of

    sys.argv[0] = f"fasttx bench {benchmark.value}"  # what argparse calls the program in its usage line
    parser_of(benchmark.value).parse_args(context.args)  # --help and a wrong option end here, without torch
    module = importlib.import_module(f"fasttx.bench.{benchmark.value}")
    console = Console(stderr=True)
    watch = bar(f"bench {benchmark.value}", console) if console.is_terminal else None
    raise typer.Exit(module.main(context.args, watch=watch))
