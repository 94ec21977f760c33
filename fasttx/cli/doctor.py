"""``python -m fasttx doctor``: what is here, what runs here and how exactly, what is missing and would bring what.

The last two are the point: a machine without a GPU, a compiler or Triton is a case to describe, never a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .notes import notes
from .tune import show as show_tuned

LIMIT_S = 600
"""After which a check that hangs is killed, and reported as one that died."""


def _run_checks(device: str, interpret: bool, step: Callable[[int | None], None]) -> Iterator[dict[str, Any]]:
    """The results of one process of fasttx.cli.check; its death is a result too."""
    environment = {k: v for k, v in os.environ.items() if k not in ("FASTTX_BACKEND", "TRITON_INTERPRET")}
    if interpret:
        environment |= {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", "fasttx.cli.check", device],
            stdout=subprocess.PIPE,
            stderr=complaints,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert child.stdout is not None
        overdue = threading.Timer(LIMIT_S, child.kill)
        overdue.start()
        for line in child.stdout:
            result = json.loads(line)
            if "total" in result:
                step(result["total"])
                continue
            step(None)
            if interpret and result["backend"] == "triton":
                result["backend"] = "triton (interpreter)"
            yield result
        code = child.wait()
        overdue.cancel()
        if code != 0:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["no message"])[-1]
            from .check import Result

            yield asdict(Result("(all that follow)", "", "", device, "", "error", f"ended with code {code}: {last}"))


def _environment_table(found: dict[str, Any]) -> Table:
    table = Table(title="This machine", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("fasttx", f"{found['fasttx']}  ({found['location']})")
    table.add_row("Python", f"{found['python']}  ({found['platform']})")
    for name, version in found["packages"].items():
        table.add_row(name, version or "[dim]not installed[/]")
    table.add_row("CUDA of torch", str(found["torch_cuda"] or "none (a build for the CPU)"))
    table.add_row("NVIDIA driver", found["driver"] or "[dim]none[/]")
    table.add_row("nvcc", found["nvcc"] or "[dim]none (not needed)[/]")
    archs = found["compiled_kernels"]
    problem = f"[dim]{escape(found['compiled_kernels_problem'] or '')}[/]"
    table.add_row("compiled kernels", problem if archs is None else f"fasttx._C for sm_{archs}")
    problem = f"[dim]{escape(found['cpu_kernels_problem'] or '')}[/]"
    form = found["cpu_kernels"]
    table.add_row("int8 on the CPU", problem if form is None else f"fasttx._C_cpu, by {form}")
    if found["forced_backend_problem"] is not None:
        table.add_row("FASTTX_BACKEND", f"[bold red]{escape(found['forced_backend_problem'])}; every op raises[/]")
    elif found["forced_backend"] != "auto":
        table.add_row("FASTTX_BACKEND", found["forced_backend"])
    for device in found["devices"]:
        rest = ", ".join(f"{key} {value}" for key, value in device.items() if key not in ("device", "name"))
        table.add_row(device["device"], f"{device['name']}, {rest}")
    return table


_COLOUR = {"ok": "green", "wrong": "bold red", "error": "bold red", "unavailable": "yellow"}


def _checks_table(device: str, checks: list[dict[str, Any]]) -> Table:
    """A row for each op and backend that ran; in the cell of a dtype, the errors of forward and backward."""
    from .check import DTYPES

    title = f"Ops on {device}, against float64 (largest error, forward/backward)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("op", no_wrap=True)
    table.add_column("backend", overflow="fold")
    for dtype in DTYPES:
        table.add_column(dtype, overflow="fold", min_width=len("1e-07/1e-07"))
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for check in checks:
        rows.setdefault((check["op"], check["backend"]), {}).setdefault(check["dtype"], []).append(check)
    for (op, backend), by_dtype in rows.items():
        if all(check["status"] == "unavailable" for group in by_dtype.values() for check in group):
            continue
        table.add_row(op, backend, *("/".join(map(_cell, by_dtype.get(dtype, []))) for dtype in DTYPES))
    return table


def _cell(check: dict[str, Any]) -> str:
    status = check["status"]
    text = status
    error, allowed = (f"{x:.2g} ulp" if check["unit"] else f"{x:.0e}" for x in (check["error"], check["allowed"]))
    if status == "ok":
        text = error
    elif status == "wrong":
        text = f"WRONG {error} > {allowed}"
    return f"[{_COLOUR[status]}]{text}[/]"


def _show_checks(console: Console, device: str, checks: list[dict[str, Any]]) -> None:
    from ..ops import OPS

    console.print(_checks_table(device, checks))
    if any(check["unit"] for check in checks):
        console.print("ulp: units of the last place of int8; rounding to the nearest is off by 0.5 at most")
    for status in ("unavailable", "error"):
        reasons = [
            (check["op"], check["backend"], check["detail"])
            for check in checks
            if check["status"] == status and check["detail"] != "not implemented"
        ]
        for note in notes(reasons, OPS, f" on {device}"):
            console.print(f"[{_COLOUR[status]}]{escape(note)}[/]", highlight=False)


def _records(devices: list[str], recheck: bool) -> list[dict[str, Any]]:
    """The records of kernels on devices that run any by themselves, checked anew with `recheck`."""
    import torch

    from ..ops import OPS, verdicts
    from ..trust import first_use
    from .check import DTYPES

    found = []
    rechecked = set()
    for device in map(torch.device, devices):
        if not any(device.type in impl.auto_on for op in OPS.values() for impl in op.impls):
            continue
        if recheck and verdicts.record_path(device) not in rechecked:  # once for all devices of a kind
            rechecked.add(verdicts.record_path(device))
            first_use.recheck(device, [(op, dtype) for op in OPS for dtype in DTYPES.values()])
        found.append({"device": str(device), **verdicts.to_dict(device)})
    return found


def _show_record(console: Console, record: dict[str, Any]) -> None:
    rows = record["rows"]
    if not rows:
        console.print(f"No kernel was checked on {record['device']} yet: fasttx.patch does so, or doctor --recheck.")
        return
    right = sum(row["status"] == "ok" for row in rows.values())
    console.print(f"{right} of {len(rows)} kernels checked on {record['device']} are right ({record['file']})")
    for name, row in rows.items():
        if row["status"] != "ok":
            console.print(f"[bold red]{name} {row['status']}: {escape(row['detail'])}[/]", highlight=False)


def _tuned(devices: list[str]) -> dict[str, dict[str, Any]]:
    """What `tune` measured on these devices, by device; a kind of device once."""
    import torch

    from ..ops import tuned

    found: dict[str, dict[str, Any]] = {}
    for device in devices:
        table = tuned.to_dict(torch.device(device))
        if table["file"] not in [other["file"] for other in found.values()]:
            found[device] = table
    return found


def doctor(
    env: Annotated[bool, typer.Option("--env", help="Stop after versions and devices.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    recheck: Annotated[bool, typer.Option("--recheck", help="Check all kernels anew and keep the record.")] = False,
) -> None:
    """Show versions and devices, run every op that can run here against float64, and say what is missing.

    Without a GPU the Triton kernels run in Triton's interpreter. The record of kernels that were checked on this
    machine, by `fasttx.patch` or `--recheck`, is shown too: what failed is left out.  So is what `tune` measured.  The
    exit code is 1 if an op was wrong or crashed, or if FASTTX_BACKEND holds an unknown name; a missing GPU, compiler or
    package is no failure.
    """
    from ..ops import verdicts
    from . import machine  # it imports torch, which --help does without

    console, progress_console = Console(), Console(stderr=True)
    found = machine.describe()
    report: dict[str, Any] = {"environment": found}
    if not as_json:
        console.print(_environment_table(found))
    lacks = machine.missing(found)
    records = _records([entry["device"] for entry in found["devices"]], recheck)
    report["records"] = records
    report["tuned"] = _tuned([entry["device"] for entry in found["devices"]])
    if not as_json:
        for record in records:
            _show_record(console, record)
        for device, table in report["tuned"].items():
            show_tuned(console, device, table, whole=False)
    if not env:
        checks: list[dict[str, Any]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=progress_console, transient=True) as progress:
            for device in [entry["device"] for entry in found["devices"]]:
                interpret = device == "cpu" and found["packages"]["triton"] is not None
                task = progress.add_task(f"ops on {device}", total=None)

                def step(total: int | None, task: Any = task) -> None:
                    if total is None:
                        progress.advance(task)
                    else:
                        progress.update(task, total=total)

                checks += _run_checks(device, interpret, step)
        report["ops"] = checks
        if not as_json:
            for device in dict.fromkeys(check["device"] for check in checks):
                _show_checks(console, device, [check for check in checks if check["device"] == device])
    report["missing"] = [asdict(lack) for lack in lacks]
    failed = [check for check in report.get("ops", []) if check["status"] in ("wrong", "error")]
    out = [name for record in records for name, row in record["rows"].items() if row["status"] in verdicts.FAILED]
    report["ok"] = not failed and not out and found["forced_backend_problem"] is None
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        for lack in lacks:
            console.print(
                f"[yellow]No {escape(lack.what)}.[/] It would bring {escape(lack.brings)}. It takes {escape(lack.how)}."
            )
        if failed or out:
            console.print(
                f"[bold red]{len(failed) + len(out)} checks failed.[/] Report them with `fasttx doctor --json`."
            )
        elif not env and report["ok"]:
            console.print("[green]Everything that can run here is right.[/]")
    if not report["ok"]:
        raise typer.Exit(1)
