"""The pictures of a report: each shows one thing, and is left out where no table has what it shows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .drawing import MUTED, OTHERS, OURS, bars, canvas, colours, legend, save
from .results import Table, number

Drawn = str | None
"""The SVG, or None where there is nothing to draw."""


@dataclass(frozen=True)
class Picture:
    """`draw` writes SVG and PNG at a path without suffix; `command` brings the table it needs."""

    name: str
    about: str
    command: str
    draw: Callable[[Sequence[Table], Path], Drawn]


def _of(tables: Sequence[Table], *kinds: str) -> list[Table]:
    """Tables of these kinds with a row, those of a GPU first; of two alike the first counts."""
    return sorted((t for t in tables if t.kind in kinds and t.rows), key=lambda t: not t.gpu)


def _lines(table: Table, points: dict[str, dict[float, float]], title: str, unit: str, stem: Path) -> Drawn:
    """A line for each name; nothing with fewer than two lengths."""
    lengths = sorted({x for line in points.values() for x in line})
    if len(lengths) < 2 or not any(name.startswith("fasttx") for name in points):
        return None
    colour = colours(sorted(points))
    with canvas(title) as (figure, axes):
        for name in sorted(points, key=lambda name: (not name.startswith("fasttx"), name)):
            line = sorted(points[name].items())
            ours = name.startswith("fasttx")
            axes.plot(
                *zip(*line, strict=True),
                marker="o",
                linestyle="--" if "known" in name else "-",
                label=name,
                color=colour[name],
                linewidth=3.5 if ours else 2,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{x:,.0f}" for x in lengths])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"tokens of the longest text\n{table.machine}, commit {table.commit[:7]}")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.25)
        legend(axes)
        return save(figure, stem)


def throughput(tables: Sequence[Table], stem: Path) -> Drawn:
    for table in _of(tables, "model"):
        cases = {(r["model"], r["task"], r["lengths"]) for r in table.rows if r["status"] == "ok"}
        for model, task, lengths in sorted(cases, key=lambda c: (c[1] != "training", c)):
            points: dict[str, dict[float, float]] = defaultdict(dict)
            for row in table.rows:
                x, y = number(row, "seqlen"), number(row, "tokens_per_s")
                if (row["model"], row["task"], row["lengths"]) == (model, task, lengths) and x and y:
                    points[row["arm"]][x] = max(y / 1e3, points[row["arm"]].get(x, 0.0))
            drawn = _lines(table, points, f"Real tokens a second, {model}, {task}", "thousand tokens / s", stem)
            if drawn:
                return drawn
    return None


def attention(tables: Sequence[Table], stem: Path) -> Drawn:
    for table in _of(tables, "kernels"):
        points: dict[str, dict[float, float]] = defaultdict(dict)
        for row in table.rows:
            length = re.fullmatch(r"attention-(?:d64|bert-base)-s(\d+)", row["workload"])
            rate = number(row, "tflops")
            wanted = row["direction"] == "fwd" and row.get("inputs") != "hot" and row["status"] in ("ok", "inexact")
            if table.gpu and length and rate and wanted:
                points[row["peer"]][float(length.group(1))] = rate
        drawn = _lines(table, points, "Attention forward, heads of 64", "TFLOP/s", stem)
        if drawn:
            return drawn
    return None


def _gains(table: Table) -> list[tuple[str, float]]:
    """(what, how many times as fast as transformers' sdpa)."""
    found = []
    for row in table.rows:
        if table.kind == "demo":
            ours, plain, what = number(row, "fasttx_ms"), number(row, "sdpa_ms"), f"MiniLM: {row['what']}"
        elif table.kind == "padding":
            wanted = (row["hidden"], row["batch"], row["seqlen"]) == ("768", "16", "128")
            ours, plain = number(row, "auto_ms"), number(row, "sdpa_ms") if wanted else None
            what = f"layers of 768: {row['task']}"
        elif table.kind == "own":
            ours, plain = 1.0, number(row, "gain") if row["arm"] == "fasttx" else None
            what = f"{row['model']}: {row['task']}, {row['batch']} x {row.get('longest') or '?'}"
        elif table.kind == "cpu":
            ours, plain = 1.0, number(row, "gain") if row["arm"] == "fasttx, fp32" else None
            what = f"{row['model']}: {row['task']}, {row['kind']}"
        else:
            wanted = row["arm"] == "sdpa" and row["status"] == "ok"
            ours, plain = 1.0, number(row, "ratio") if wanted else None
            what = f"{row['model']} {row['task']}, {row['seqlen']} tokens"
        real = number(row, "real")
        if ours and plain and real:
            found.append((f"{what}\n{real:.0%} of the tokens real", plain / ours))
    return found


def speed_up(tables: Sequence[Table], stem: Path) -> Drawn:
    kinds = ("model", "demo", "padding", "cpu", "own")
    first = next(iter(_of(tables, *kinds)), None)
    if first is None:
        return None
    same: dict[str, Table] = {}  # of one machine; a benchmark that was repeated counts once
    for table in _of(tables, *kinds):
        if table.machine == first.machine:
            same.setdefault(table.path.stem if table.kind == "own" else table.kind, table)
    gains = sorted((each for table in same.values() for each in _gains(table)), key=lambda each: -each[1])
    if not gains:
        return None
    with canvas("How much faster a patched model is", 1.6 + 0.72 * len(gains)) as (figure, axes):
        bars(axes, [(what, gain, f"{gain:.2f} x", OURS if gain >= 1 else OTHERS[1]) for what, gain in gains], line=1.0)
        commits = ", ".join(dict.fromkeys(table.commit[:7] for table in same.values()))
        axes.set_xlabel(f"transformers' time (sdpa) / patched time\n{first.machine}\ncommit {commits}")
        return save(figure, stem)


def memory(tables: Sequence[Table], stem: Path) -> Drawn:
    for table in _of(tables, "model"):
        rows: dict[str, dict[str, float]] = defaultdict(dict)
        for row in table.rows:
            peak = number(row, "peak_MiB")
            if peak and row["status"] == "ok" and row["task"] == "training":
                rows[f"{row['model']}, {row['batch']} x {row['seqlen']}"][row["arm"]] = peak / 1024
        case = next((case for case, arms in rows.items() if {"fasttx", "sdpa"} <= arms.keys()), None)
        if case is None:
            continue
        arms = sorted(rows[case].items(), key=lambda each: each[1])
        with canvas(f"Memory of a training step of {case}", 1.6 + 0.6 * len(arms)) as (figure, axes):
            colour = colours([name for name, _ in arms])
            bars(
                axes, [(name, peak, f"{peak:.1f} GiB", OURS if colour[name] == OURS else MUTED) for name, peak in arms]
            )
            axes.set_xlabel(f"GiB at the peak\n{table.machine}, commit {table.commit[:7]}")
            return save(figure, stem)
    return None


def gain_by_padding(tables: Sequence[Table], stem: Path) -> Drawn:
    for table in _of(tables, "padding"):
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in table.rows:
            if (row["hidden"], row["batch"], row["seqlen"]) == ("768", "16", "128"):
                plain, ours, real = (number(row, name) for name in ("sdpa_ms", "auto_ms", "real"))
                if plain and ours and real:
                    lines[row["task"]].append((100 * (1 - real), plain / ours))
        if not any(len(line) > 1 for line in lines.values()):
            continue
        rising = all(gains == sorted(gains) for gains in ([y for _, y in sorted(line)] for line in lines.values()))
        title = "The more padding, the more a patch brings" if rising else "What a patch brings, by share of padding"
        with canvas(title) as (figure, axes):
            end = max(x for line in lines.values() for x, _ in line)
            shares = [end * i / 40 for i in range(41)]
            axes.plot(shares, [1 / (1 - x / 100) for x in shares], ":", color=MUTED, label="padded / real tokens")
            for (task, line), colour in zip(lines.items(), (OURS, OTHERS[1]), strict=False):
                axes.plot(*zip(*sorted(line), strict=True), marker="o", linewidth=3, color=colour, label=task)
            axes.axhline(1.0, color=MUTED, linewidth=1)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(
                f"padding, % of the tokens (layers of 768, 16 x 128)\n{table.machine}, commit {table.commit[:7]}"
            )
            axes.set_ylabel("times as fast as sdpa")
            legend(axes, loc="upper left")
            return save(figure, stem)
    return None


def loss_curves(tables: Sequence[Table], stem: Path) -> Drawn:
    for table in _of(tables, "convergence"):
        steps = [number(row, "step") for row in table.rows]
        with canvas("Loss with the patch, over the loss without it", 4.8, panels=2) as (figure, axes):
            for axis, task in zip(axes, ("pretraining", "classification"), strict=True):
                plain, ours = ([number(r, f"{task}-{arm}-exact") for r in table.rows] for arm in ("plain", "patched"))
                shown = [(x, a, b) for x, a, b in zip(steps, plain, ours, strict=True) if None not in (x, a, b)]
                apart = max((abs(a - b) for _, a, b in shown), default=0.0)
                x, first, second = zip(*shown, strict=True) if shown else ((), (), ())
                axis.plot(x, first, color=OTHERS[0], linewidth=5, label="transformers")
                axis.plot(x, second, color=OURS, linewidth=1.6, label="patched")
                axis.set_title(f"{task}\nat most {apart:.1e} apart", fontsize=14)
                axis.set_xlabel("step")
                axis.set_ylim(bottom=0)
                legend(axis)
            axes[0].set_ylabel("loss, without dropout")
            return save(figure, stem)
    return None


def int8_error(tables: Sequence[Table], stem: Path) -> Drawn:
    found: dict[str, tuple[float, float, Table]] = {}
    for table in _of(tables, "accuracy", "kernels"):
        for row in table.rows:
            name = str(row.get("op") or row.get("workload"))
            pair = number(row, "error"), number(row, "allowed")
            ours = str(row.get("peer", "fasttx")).startswith("fasttx") and row.get("direction") == "fwd"
            if ours and None not in pair and ("int8" in name or "quantize" in name):
                label = name.split("-")[0]
                if label not in found or (pair[0] or 0.0) > found[label][0]:
                    found[label] = (pair[0] or 0.0, pair[1] or 0.0, table)
    if not found:
        return None
    table = next(iter(found.values()))[2]
    rows = [(n, error / allowed, f"{error / allowed:.0%}", OURS) for n, (error, allowed, _) in sorted(found.items())]
    with canvas("Error of the int8 ops against float64", 1.8 + 0.7 * len(rows)) as (figure, axes):
        bars(axes, rows, line=1.0)
        axes.set_xlabel(f"error / what is allowed (the line)\n{table.machine}, commit {table.commit[:7]}")
        return save(figure, stem)


PICTURES = (
    Picture(
        "speed-up",
        "How many times as fast as transformers' sdpa a patched model is.",
        "python -m bench.model --out results/<machine>/model.csv",
        speed_up,
    ),
    Picture(
        "gain-by-padding",
        "Speed-up by the share of padding in a batch. The dotted line is the share of work that is saved.",
        "python -m bench.padding --out results/<machine>/padding.csv",
        gain_by_padding,
    ),
    Picture(
        "throughput-by-length",
        "Real tokens a second of a model by the length of its longest text.",
        "python -m bench.model --seqlen 128 512 --out results/<machine>/model.csv",
        throughput,
    ),
    Picture(
        "attention-by-length",
        "Attention's rate by the length of the texts, on a GPU.",
        "python -m bench.kernels --only attention --out results/<machine>/kernels.csv",
        attention,
    ),
    Picture(
        "memory",
        "Peak memory of a training step on a GPU.",
        "python -m bench.model --target D2 --out results/<machine>/model.csv",
        memory,
    ),
    Picture(
        "loss-curves",
        "Loss of a small BERT trained with and without the patch, dropout off, same batches.",
        "python -m bench.convergence",
        loss_curves,
    ),
    Picture(
        "int8-error",
        "How far the int8 ops are from float64, beside what is allowed.",
        "python -m bench.kernels --only int8 --out results/<machine>/kernels.csv",
        int8_error,
    ),
)
