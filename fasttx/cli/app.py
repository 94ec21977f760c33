"""The commands by name; each lives in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

import fasttx

from .bench import Passing, bench
from .demo import demo
from .doctor import doctor
from .plot import plot
from .supported import supported
from .tune import tune
from .verify import verify

app = typer.Typer(
    name="fasttx",
    help="Fused attention, losses and more for Hugging Face BERT and its relatives.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _flowed(text: str) -> str:
    """`text` with one line for each paragraph: typer would keep a docstring's own line ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).strip()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fasttx {fasttx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program as a whole."""


_options.__doc__ = None  # typer would print it instead of the help given to `app`
for _command in (doctor, supported, tune, demo, verify, plot):
    app.command(help=_flowed(_command.__doc__ or ""))(_command)
_FOR_THE_BENCHMARK = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
app.command(cls=Passing, help=_flowed(bench.__doc__ or ""), context_settings=_FOR_THE_BENCHMARK)(bench)
