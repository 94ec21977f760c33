"""Pictures of benchmark tables: speed-up bars, and throughput by length."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .report import results
from .report.results import number

Rows = list[dict[str, str]]
OURS = "#0b7a75"
OTHERS = ("#8d99ae", "#d17b0f", "#5c4d7d", "#b23a48", "#4f772d", "#3d5a80", "#9c6644")


class TableError(ValueError):
    """A file is missing, or is no table of a benchmark; the message says which and what is expected."""


def read(path: Path) -> Rows:
    """The rows of a table.

    Raises:
        TableError: there is no such file, or it has no rows or columns of fasttx bench kernels or model.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; expected a CSV that fasttx bench kernels or model wrote")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or kind_of(rows) is None:
        raise TableError(
            f"{path}: has no rows of fasttx bench kernels or model (columns workload and peer, or model and arm)"
        )
    return rows


def kind_of(rows: Rows) -> str | None:
    """Which of the two tables that are drawn here it is."""
    found = results.kind_of(rows[0])
    return found if found in ("kernels", "model") else None


def colour(name: str, names: list[str]) -> str:
    others = [other for other in names if not other.startswith("fasttx")]
    return OURS if name.startswith("fasttx") else OTHERS[others.index(name) % len(OTHERS)]


def _bars(rows: Rows, group: Callable[[dict[str, str]], str], peer: str, title: str, path: Path) -> Path | None:
    """Time of each peer over ours, by group; 1 is ours."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        ratio = number(row, "ratio")
        if ratio is not None and not row[peer].startswith("fasttx"):
            exact = "" if row.get("status") != "inexact" else " (inexact)"
            found[group(row)][row[peer] + exact] = ratio
    if not found:
        return None
    names = sorted({name for ratios in found.values() for name in ratios})
    bars = sum(len(ratios) for ratios in found.values())
    figure = Figure(figsize=(9, 1.4 + 0.2 * bars + 0.25 * len(found)), layout="constrained")
    axes = figure.subplots()
    at, ticks, labels = 0.0, [], []
    for label, ratios in reversed(found.items()):
        begin = at
        for name in reversed([n for n in names if n in ratios]):
            axes.barh(at, ratios[name], height=0.85, color=colour(name, names))
            axes.text(ratios[name], at, f" {ratios[name]:.2f}", va="center", fontsize=7)
            at += 1
        ticks.append((begin + at - 1) / 2)
        labels.append(label)
        at += 0.8
    axes.axvline(1.0, color=OURS, linewidth=1.5)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_xlabel("time / fasttx's time (right of the line: fasttx is faster)")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.1)
    handles = [axes.barh(0, 0, color=colour(name, names)) for name in names]
    axes.legend(handles, names, fontsize=8, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
    return path


def _lines(
    rows: Rows,
    length: Callable[[dict[str, str]], float | None],
    value: str,
    peer: str,
    unit: str,
    title: str,
    path: Path,
) -> Path | None:
    """`value` by length, a line for each peer; nothing to draw with fewer than two lengths."""
    from matplotlib.figure import Figure

    found: dict[str, dict[float, float]] = defaultdict(dict)
    for row in rows:
        n, y = length(row), number(row, value)
        if n is not None and y is not None:
            found[row[peer]][n] = max(y, found[row[peer]].get(n, 0.0))
    if len({n for points in found.values() for n in points}) < 2:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in sorted(found, key=lambda name: (not name.startswith("fasttx"), name)):
        points = sorted(found[name].items())
        width = 2.5 if name.startswith("fasttx") else 1.5
        axes.plot(
            *zip(*points, strict=True), marker="o", label=name, color=colour(name, sorted(found)), linewidth=width
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({n for points in found.values() for n in points})
    axes.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sequence length")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _seqlen_in(name: str) -> float | None:
    found = re.fullmatch(r"attention-d64-s(\d+)", name)  # causal, ragged and other shapes are other curves
    return float(found.group(1)) if found else None


def draw(table: Path, out: Path) -> list[Path]:
    """Draws what `table` holds into the folder `out`, which is made.

    Returns:
        The files written.

    Raises:
        TableError: see :func:`read`; or no row has a time.
    """
    rows = read(table)
    kind = kind_of(rows)
    timed = [row for row in rows if number(row, "median_ms") is not None and row.get("inputs", "cold") != "hot"]
    if not timed:
        raise TableError(f"{table}: none of its {len(rows)} rows has a time")
    out.mkdir(parents=True, exist_ok=True)
    where = f"{timed[0].get('device', '')}, commit {timed[0].get('commit', 'unknown')}"
    missing = sum(number(row, "median_ms") is None for row in rows)
    if missing:
        where += f"; {missing} rows without a time"
    stem = out / table.stem
    pictures: list[Path | None] = []

    def path(what: str) -> Path:
        return stem.with_name(f"{stem.name}-{what}.png")

    if kind == "kernels":
        for direction in ("fwd", "bwd", "step"):
            some = [row for row in timed if row["direction"] == direction]
            pictures.append(
                _bars(some, lambda r: r["workload"], "peer", f"{direction}: {where}", path(f"speed-up-{direction}"))
            )
            pictures.append(
                _lines(
                    some,
                    lambda r: _seqlen_in(r["workload"]),
                    "tflops",
                    "peer",
                    "TFLOP/s",
                    f"attention {direction}: {where}",
                    path(f"attention-{direction}"),
                )
            )
        return [p for p in pictures if p is not None]

    def case(row: dict[str, Any]) -> str:
        return f"{row['model']} {row['task']}\n{row['batch']} x {row['seqlen']} {row['lengths']}"

    pictures.append(_bars(timed, case, "arm", where, path("speed-up")))
    for model, task in sorted({(row["model"], row["task"]) for row in timed}):
        some = [row for row in timed if (row["model"], row["task"]) == (model, task)]
        name = f"{model}-{task}".replace(" ", "-").replace(",", "")
        title = f"{model}, {task}: {where}"
        pictures.append(
            _lines(some, lambda r: number(r, "seqlen"), "tokens_per_s", "arm", "real tokens / s", title, path(name))
        )
    return [p for p in pictures if p is not None]
