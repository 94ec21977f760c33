"""``python -m fasttx supported``: which backend runs which op, here and on a GPU, and which models can be patched."""

from __future__ import annotations

import importlib.util
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fasttx

from .notes import notes

if TYPE_CHECKING:  # they import torch, which --help does without
    import torch

    from ..ops.registry import Op


class DType(str, Enum):
    """Names of dtypes as the command line takes them."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def on_gpu(op: Op) -> dict[str, str]:
    """For every backend, what it asks of an NVIDIA GPU, from the rows of the table alone."""
    from ..ops.backends import BACKENDS

    found = {name: "no" for name in BACKENDS} | {"torch": "any"}
    found |= {i.backend: f"capability {i.min_arch / 10:.1f}" for i in op.impls if "cuda" in i.auto_on}
    return found


def asks(op: Op) -> dict[str, str]:
    """The same for the documentation, where a backend for CPUs has its own word."""
    return on_gpu(op) | {impl.backend: "a CPU" for impl in op.impls if "cpu" in impl.auto_on}


def markdown() -> str:
    """The table of ops for the documentation: what each computes, and what its backends ask of a device."""
    from ..ops import OPS
    from ..ops.backends import BACKENDS

    rows = [("op", "what", *BACKENDS), ("---",) * (2 + len(BACKENDS))]
    rows += [(f"`{name}`", op.about, *(asks(op)[b] for b in BACKENDS)) for name, op in OPS.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace(" --- ", "---")


def families_markdown() -> str:
    """The table of families for the documentation; families with the same marks share a row."""
    from ..models.families.overview import PARTS, replaced_parts

    names: dict[tuple[str, ...], list[str]] = {}
    for name, replaced in replaced_parts().items():
        names.setdefault(tuple("✓" if part in replaced else "–" for part in PARTS), []).append(name)
    rows = [("family", *PARTS), ("---",) * (1 + len(PARTS))]
    rows += [(", ".join(found), *marks) for marks, found in names.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace(" --- ", "---")


def ops_here(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str | None]]:
    """For every op and backend, None if it can run a small call on `device`, else why not."""
    from ..ops import OPS
    from ..ops.cases import like

    return {name: op.reasons(*like(op, device, dtype)) for name, op in OPS.items()}


def taken(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """For every op, the backend that runs a small call on `device` where none is forced."""
    from ..ops import OPS
    from ..ops.cases import like

    return {name: op.runs("auto", *like(op, device, dtype)) for name, op in OPS.items()}


def tuned_here(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """For every op or form that leaves its default on `device` by what `tune` measured, what it takes and why."""
    from ..ops import tuned

    found = {}
    for item, each in tuned.known(device).items():
        name, short, regime = item.split("/", 2)
        if each.takes != each.default and short in (str(dtype).removeprefix("torch."), "int8"):
            found[f"{name}, {regime}"] = f"{each.takes}, {tuned.reason(name, device, dtype, regime)}"
    return found


def _device(text: str | None) -> torch.device:
    import torch

    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = (str(problem).strip().splitlines() or ["unknown"])[0]
        raise typer.BadParameter(
            f"got {text!r}, which this PyTorch cannot use ({reason}); allowed are cpu, cuda, cuda:N, ...",
            param_hint="--device",
        ) from None
    return device


def models() -> list[dict[str, str]] | None:
    """What fasttx.patch can replace, a row for each model class; None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    return fasttx.supported()


def supported(
    device: Annotated[
        str | None,
        typer.Option(help="Ask about tensors on this device.", show_default="cuda if there is one, else cpu"),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Ask about tensors of this dtype.")] = DType.bf16,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of the documentation.")] = False,
) -> None:
    """Show which backend runs which op, here and on a GPU, and which models can be patched."""
    if as_markdown:
        sys.stdout.write(markdown() + ("" if models() is None else f"\n{families_markdown()}"))
        return
    from ..ops import OPS
    from ..ops.cpu.launch import built_form
    from ..ops.cuda.launch import built_for
    from .check import DTYPES

    where = _device(device)
    here = ops_here(where, DTYPES[dtype.value])
    gpu = {name: on_gpu(op) for name, op in OPS.items()}
    auto = taken(where, DTYPES[dtype.value])
    known = models()
    if as_json:
        report: dict[str, Any] = {
            "device": str(where),
            "dtype": dtype.value,
            "ops": here,
            "ops_on_nvidia_gpu": gpu,
            "models": known,
        }
        report |= {"auto": auto, "compiled_for": built_for(), "compiled_form": built_form()}
        report |= {"tuned": tuned_here(where, DTYPES[dtype.value])}
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    console = Console()
    answers = {
        name: {b: "[yellow]no[/]" if why else "[green]can[/]" for b, why in reasons.items()}
        | {auto[name]: "[green]runs[/]"}
        for name, reasons in here.items()
    }
    console.print(_ops_table(f"Ops on {where} in {dtype.value}: what runs, and what else can", answers))
    lacking = [(name, b, why) for name, reasons in here.items() for b, why in reasons.items() if why is not None]
    for note in notes(lacking, here):
        console.print(escape(note), style="yellow", highlight=False)
    for name, why in tuned_here(where, DTYPES[dtype.value]).items():
        console.print(escape(f"{name}: {why}"), style="green", highlight=False)
    console.print()
    console.print(_ops_table("Ops on an NVIDIA GPU: what each backend needs", gpu))
    archs = built_for()
    console.print(f"cuda: compiled kernels, fasttx._C: {'not built' if archs is None else f'for sm_{archs}'}")
    console.print(f"cpu: int8 kernels for the CPU, fasttx._C_cpu: {built_form() or 'not built'}")
    console.print()
    if known is None:
        console.print("Models: [yellow]transformers is not installed[/] (pip install 'fasttx\\[hf]')")
    else:
        console.print(_models_table(known))


def _ops_table(title: str, cells: dict[str, dict[str, str]]) -> Table:
    """A row for each op, a column for each backend."""
    from ..ops.backends import BACKENDS

    table = Table(title=title, title_justify="left")
    for column in ("op", *BACKENDS):
        table.add_column(column, no_wrap=True)
    for name, found in cells.items():
        table.add_row(name, *(found[b] for b in BACKENDS))
    return table


def _models_table(known: list[dict[str, str]]) -> Table:
    """The classes of each family by the ops that compute their loss; no class name is broken at 80 columns."""
    table = Table(title="Models that fasttx.patch knows", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family\n[dim]model_type[/]", no_wrap=True)
    table.add_column("classes", overflow="fold")
    table.add_column("loss by", no_wrap=True)
    classes: dict[tuple[str, str], list[str]] = {}
    for row in known:
        family = f"{row['family']}\n[dim]{escape(row['model_type'] or 'any model')}[/]"
        classes.setdefault((family, row["loss"].replace(", ", "\n")), []).append(row["class"])
    shown = ""
    for (family, loss), names in classes.items():
        table.add_row("" if family == shown else family, ", ".join(names), loss or "no loss")
        shown = family
    return table
