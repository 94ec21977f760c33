"""``python -m fasttx tune``: measures on this machine what is the fastest that is right, for "auto" to take."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # it imports torch, which --help does without
    from ..ops.tuned import Measured

WIDTH = 80


def _times(gain: float | None) -> str:
    return "-" if gain is None else f"{gain:.2f} x"


def table_of(device: str, measured: dict[str, Measured]) -> Table:
    """What "auto" takes of each op or form in each regime, beside its default and PyTorch's own way."""
    title = f"What auto takes on {device}, and how many times as fast that is"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, width=WIDTH)
    table.add_column("calls", overflow="fold", ratio=1)
    table.add_column("auto takes", no_wrap=True)
    table.add_column("as default", justify="right", no_wrap=True)
    table.add_column("as PyTorch", justify="right", no_wrap=True)
    shown = ""
    for item, found in measured.items():
        name, dtype, regime = item.split("/", 2)
        if f"{name}, {dtype}" != shown:
            shown = f"{name}, {dtype}"
            table.add_row(f"[bold]{escape(shown)}[/]")
        mark = "" if found.takes == found.default else "[green]"
        takes = f"{mark}{escape(found.takes)}" + ("[/]" if mark else "")
        gains = "default" if found.takes == found.default else _times(found.gain), _times(found.gain_on_own)
        table.add_row(f"  {escape(regime)}", takes, *gains)
    return table


def show(console: Console, device: str, record: dict[str, Any], *, whole: bool) -> None:
    """Prints a table as :func:`fasttx.ops.tuned.to_dict` has it: all of it, or what differs from the default."""
    from ..ops.tuned import Measured

    measured = {name: Measured.of(each) for name, each in record["measured"].items()}
    if not measured:
        console.print(f"Nothing was measured on {device} yet: python -m fasttx tune does so.", highlight=False)
        return
    other = {name: found for name, found in measured.items() if found.takes != found.default}
    if whole or other:
        console.print(table_of(device, measured if whole else other))
    off = "" if record["is_used"] else "; FASTTX_TUNED=0 switches it off"
    text = f"{len(measured)} kinds of calls measured on {device}, in {len(other)} of them auto leaves its default"
    console.print(escape(f"{text} ({record['file']}){off}"), highlight=False, soft_wrap=True)
    for name, found in measured.items():
        for way, why in found.left_out.items():
            console.print(f"[yellow]{escape(f'{name}: {way} is left out: {why}')}[/]", highlight=False, soft_wrap=True)


def _line(found: Measured | str) -> str:
    if isinstance(found, str):
        return f"not measured: {found}"
    if found.takes == found.default:
        return f"{found.takes}, as before"
    return f"{found.takes}, {_times(found.gain)} as fast as {found.default}"


def tune(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, in less than a minute.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Measure this op or form alone; may be repeated.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Measure again what was measured before.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Measure on this device.", show_default="cuda if there is one, else cpu")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Measure on this machine which of the right ways is the fastest, and let fasttx take it from now on.

    Times every kernel of fasttx and PyTorch's own operators in turn, forward and backward, by kinds of calls. What is
    wrong is never taken.  On a CPU it decides between forms of the same of PyTorch's operators.  It takes ten minutes
    at most; what was measured is kept at once, and the next run goes on from there. FASTTX_TUNED=0 switches the table
    off.
    """
    from ..ops import tuned
    from ..trust import tune as measuring
    from .supported import _device

    where = _device(device)
    console, progress_console = Console(), Console(stderr=True)
    interrupted, outcome = False, measuring.Outcome()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    is_terminal = progress_console.is_terminal
    with Progress(*columns, console=progress_console, transient=True, disable=not is_terminal) as progress:
        task = progress.add_task("tune", total=None)

        def step(number: int, total: int, item: str, found: Measured | str | None) -> None:
            progress.update(task, total=total, completed=number + (found is not None), description=f"tune {item}")
            if found is not None and not is_terminal:
                print(f"tune {number + 1} of {total}: {item}: {_line(found)}", file=sys.stderr, flush=True)

        try:
            outcome = measuring.tune(where, quick=quick, only=only or (), anew=anew, step=step)
        except ValueError as problem:
            raise typer.BadParameter(str(problem).removeprefix("--only: "), param_hint="--only") from None
        except KeyboardInterrupt:  # what was measured is in the file
            interrupted = True
    record = tuned.to_dict(where)
    if as_json:
        report = {"device": str(where), "quick": quick, "reason": outcome.reason, "interrupted": interrupted}
        report |= {"measured_now": list(outcome.measured), "not_measured": outcome.left}
        sys.stdout.write(json.dumps(report | {"nothing_to_choose": outcome.nothing} | record, indent=1) + "\n")
    else:
        _tell(console, str(where), outcome, record, interrupted)
    if interrupted:
        raise typer.Exit(130)
    if outcome.reason:
        raise typer.Exit(1)


def _tell(console: Console, device: str, outcome: Any, record: dict[str, Any], interrupted: bool) -> None:
    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    if outcome.reason:
        say(f"Nothing was measured: {outcome.reason}.")
        return
    if record["measured"] or not outcome.nothing:
        show(console, device, record, whole=True)
    if outcome.nothing:
        say(f"On {device} there is one way only for {', '.join(outcome.nothing)}: PyTorch's own operators run.")
    reasons: dict[str, list[str]] = {}
    for name, why in outcome.left.items():
        reasons.setdefault(why, []).append(name)
    for why, items in reasons.items():
        say(f"{len(items)} not measured: {why} ({items[0]}{', ...' if len(items) > 1 else ''})")
    if interrupted or "no time was left" in reasons:
        say("What was measured is kept. Run the same again to go on from there.")
    elif not outcome.measured and record["measured"]:
        say("Everything was measured before; --anew measures it again.")
