"""The tables that benchmarks leave in results/, read back: what kind each file is, from which machine and commit.

A new table needs one line in `COLUMNS`, the columns that it alone has; a file that is no CSV needs a function in
`READERS`. Rows of a rehearsal are counted and left out, because they say nothing of a machine.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS: dict[str, frozenset[str]] = {
    "kernels": frozenset({"workload", "direction", "peer", "median_ms", "ratio"}),
    "model": frozenset({"model", "arm", "lengths", "median_ms", "ratio"}),
    "serving": frozenset({"model", "arm", "requests", "p50_ms"}),
    "padding": frozenset({"hidden", "real", "sdpa_ms", "auto_ms"}),
    "own": frozenset({"arm", "texts_per_s", "gain", "difference"}),
    "cpu": frozenset({"model", "kind", "arm", "precision", "cpu_ms", "least_cosine"}),
    "host": frozenset({"what", "part", "us"}),
    "convergence": frozenset({"step", "pretraining-plain-exact", "pretraining-patched-exact"}),
    "accuracy": frozenset({"op", "direction", "dtype", "backend", "error", "allowed"}),
}
"""Kind of a table -> the columns by which it is known."""
ON_GPU = ("kernels", "model", "accuracy")
"""Kinds of tables whose rows are lines of gpu-check."""
_NAMED = re.compile(r"commit ([0-9a-f]{7,40}\+?)")


class ResultError(ValueError):
    """A file that cannot be read as a benchmark's result; the message says which and what is expected."""


@dataclass(frozen=True)
class Table:
    """The rows of one kind in one file.

    Attributes:
        path: of the file.
        kind: a key of `COLUMNS`, or "demo".
        rows: without those of a rehearsal.
        machine: in words.
        commit: of the code that was measured, or "unknown".
        rehearsed: how many rows were left out.
    """

    path: Path
    kind: str
    rows: list[Row]
    machine: str
    commit: str
    rehearsed: int = 0

    @property
    def gpu(self) -> bool:
        """Whether the figures are those of a GPU."""
        return any(row.get("device", "cpu") != "cpu" for row in self.rows)


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of a row; None where the row has none."""
    try:
        return float(row[name])
    except (KeyError, TypeError, ValueError):
        return None


def kind_of(columns: Any) -> str | None:
    """The kind of table that has these columns."""
    return next((kind for kind, needed in COLUMNS.items() if needed <= set(columns)), None)


# ---------------------------------------------------------------------------------------------------------- one file


def _csv(path: Path) -> dict[str, list[Row]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ResultError(f"{path}: got {type(problem).__name__}; allowed is a CSV that fasttx bench wrote") from None
    kind = kind_of(rows[0]) if rows else None
    if kind is None:
        got = f"columns {', '.join(map(str, list(rows[0])[:6]))}" if rows else "no row"
        raise ResultError(f"{path}: got {got}; allowed are tables of {', '.join(COLUMNS)} that fasttx bench wrote")
    return {kind: rows}


def _jsonl(path: Path) -> dict[str, list[Row]]:
    """Lines of gpu-check. One file holds lines of several kinds, and lines that are no row of a table."""
    found: dict[str, list[Row]] = {}
    for at, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text) if text.strip() else {"stage": "", "item": ""}
        except ValueError:
            line = None
        if not isinstance(line, dict) or not {"stage", "item"} <= line.keys():
            raise ResultError(f"{path}: got line {at} that is none of make gpu-check; allowed are the files it wrote")
        kind = kind_of(line)
        if kind in ON_GPU:  # a line's `part` is the half of the check, not the column of a table
            found.setdefault(kind, []).append(line)
    return found


def _demo(path: Path) -> dict[str, list[Row]]:
    """The table and the two sentences that the demo prints."""
    text = path.read_text(encoding="utf-8", errors="replace")
    cell = r"\s*([\d.]+)\s*"
    real = dict(zip(("embed", "train"), re.findall(r"(\d+)% of the\s+padded\s+tokens are\s+real", text), strict=False))
    rows = [
        {"what": what, "sdpa_ms": plain, "fasttx_ms": ours, "device": "cpu" if " on CPU" in text else "gpu"}
        | {"real": float(real.get(what[:5].replace("ing", "").strip(), real.get("train", 0))) / 100}
        for what, plain, ours in re.findall(rf"│ ([\w ]+), ms\s*│{cell}│{cell}│", text)
    ]
    if not rows or not real:
        raise ResultError(f"{path}: got no table of the demo; allowed is what fasttx demo printed")
    return {"demo": rows}


READERS: dict[str, Callable[[Path], dict[str, list[Row]]]] = {"*.csv": _csv, "*.jsonl": _jsonl, "demo*.txt": _demo}
"""Names of files -> what reads them. Files by other names are no results."""


# ------------------------------------------------------------------------------------------------------- one folder


def _described(folder: Path) -> tuple[str, Callable[[str], str]]:
    """(the machine in words, file name -> commit), from what a folder's README and environment.jsonl say."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    machine, commit = re.split(r"[,;\n]| under ", text, maxsplit=1)[0].strip("# "), "unknown"
    first = _NAMED.search(text)
    commit = first.group(1) if first else commit
    environment = folder / "environment.jsonl"
    for line in environment.read_text(encoding="utf-8").splitlines() if environment.is_file() else ():
        about = json.loads(line).get("found") if '"found"' in line else None
        if isinstance(about, dict):
            machine, commit = about.get("device", machine), about.get("commit", commit)

    def of(name: str) -> str:
        entry = re.search(rf"^- `{re.escape(name)}`.*(?:\n  .*)*", text, re.M)
        own = _NAMED.search(entry.group(0)) if entry else None
        return own.group(1) if own else commit

    return machine or folder.name, of


def _rehearsed(row: Row) -> bool:
    tiny = row.get("kind") is not None and str(row.get("model")).startswith("tiny")  # bench.cpu --tiny
    return bool(row.get("rehearsal")) or row.get("device") == "rehearsal" or tiny


def read(root: Path) -> list[Table]:
    """All tables under a folder, or that of one file.

    Raises:
        ResultError: there is no such folder, nothing in it is a result, or a file is none of a benchmark's.
    """
    if not root.exists():
        raise ResultError(f"{root}: no such file or folder; allowed is one with results, as results/<machine>/")
    folder = root if root.is_dir() else root.parent
    files = {
        path: reader
        for pattern, reader in READERS.items()
        for path in sorted(folder.rglob(pattern))
        if root in (path, *path.parents)
    }
    tables = []
    for path, reader in files.items():
        try:
            found = reader(path)
        except OSError as problem:
            raise ResultError(f"{path}: {problem.strerror}; allowed is a file that can be read") from None
        machine, commit = _described(path.parent)
        for kind, rows in found.items():
            real = [row for row in rows if not _rehearsed(row)]
            device = next((str(r["device"]) for r in real if r.get("device", "cpu") not in ("cpu", "gpu")), machine)
            own = next((str(r["commit"]) for r in real if r.get("commit")), commit(path.name))
            tables.append(Table(path, kind, real, device, own, len(rows) - len(real)))
    if not tables:
        raise ResultError(f"{root}: got no result in it; allowed are files that fasttx bench or make gpu-check wrote")
    return tables
