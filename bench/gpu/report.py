"""Turns what `make gpu-check` brought back into results/<machine>/ and the rows of docs/verification.md.

    python -m bench.gpu.report OUT [OUT ...] --to results/<machine> [--page docs/verification.md]

Copies the files (those of several folders are joined), writes README.md beside them, and replaces what stands between
the two markers of the page. A rehearsal's files are refused: they say nothing about a GPU. The standard library alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .records import Line, read
from .stages import LOG, files

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "verification.md"
BEGIN, END = "<!-- begin: written by bench.gpu.report -->", "<!-- end: written by bench.gpu.report -->"


class ReportError(ValueError):
    """What was given cannot become a report; nothing was written."""


def gather(folders: Sequence[Path]) -> dict[str, list[Line]]:
    """The lines of all folders by file.

    Raises:
        ReportError: there are none, or a line is of a rehearsal.
    """
    found: dict[str, list[Line]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl")):
            if path.name in files():
                found.setdefault(path.name, []).extend(read(path))
    lines = [line for each in found.values() for line in each]
    if not lines:
        raise ReportError(f"OUT: got {' '.join(map(str, folders))} without a result; allowed is what gpu-check wrote")
    rehearsed = sum(bool(line.get("rehearsal")) for line in lines)
    if rehearsed:
        raise ReportError(f"OUT: got {rehearsed} lines of a rehearsal; allowed are results of a GPU alone")
    return found


def machine_of(lines: Iterable[Line]) -> dict[str, str]:
    """What the stage `environment` found, of the last part that ran."""
    found = [line["found"] for line in lines if line["item"] == "machine" and "found" in line]
    if not found:
        raise ReportError("OUT: got no line of the item 'machine'; allowed are files with the stage `environment`")
    return found[-1]


def verdicts(lines: Iterable[Line]) -> dict[tuple[str, str], dict[str, list[bool]]]:
    """By (backend, op), for each dtype whether each checked direction was right."""
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for line in lines:
        if {"op", "direction", "dtype", "backend"} <= line.keys():
            by_dtype = found.setdefault((line["backend"], line["op"]), {})
            by_dtype.setdefault(line["dtype"], []).append(bool(line["ok"]))
    return found


def rows_of_page(found: dict[str, list[Line]], place: str) -> list[str]:
    """The table between the markers: what was right on this machine, in which dtypes, and what was not."""
    lines = [line for each in found.values() for line in each]
    machine = machine_of(lines)
    text = [
        f"On one {machine.get('device', 'GPU')} at {machine.get('commit', 'unknown')}, with torch "
        f"{machine.get('torch')} and Triton {machine.get('triton')}, "
        f"against float64 ([{place}](../{place})):",
        "",
        "| backend | op | right | not right |",
        "|---|---|---|---|",
    ]
    for (backend, op), by_dtype in sorted(verdicts(lines).items()):
        right = [f"{dtype} ({len(each)})" for dtype, each in by_dtype.items() if all(each)]
        wrong = [
            f"{dtype} ({len(each) - sum(each)} of {len(each)})" for dtype, each in by_dtype.items() if not all(each)
        ]
        text.append(f"| `{backend}` | `{op}` | {', '.join(right)} | {', '.join(wrong)} |")
    lost = sorted({f"{line['stage']} {line['item']}".strip() for line in lines if line.get("lost")})
    if lost:
        text += ["", f"Not finished there: {', '.join(lost)}."]
    return text


def summary(found: dict[str, list[Line]]) -> list[str]:
    """Every figure with its prediction, and all that was wrong, a table a stage."""
    lines = [line for each in found.values() for line in each]
    text = ["# Results", "", *(f"- {name}: {value}" for name, value in machine_of(lines).items())]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        rows = [line for line in lines if line["stage"] == stage]
        wrong = sum(not line["ok"] for line in rows)
        text += ["", f"## {stage}", "", f"{len(rows) - wrong} good, {wrong} not.", ""]
        text += ["| | item | result | expected |", "|---|---|---|---|"]
        for line in rows:
            if line.get("key") or not line["ok"] or line.get("expected"):
                cells = ("" if line["ok"] else "BAD", line["item"], line.get("text", ""), line.get("expected", ""))
                text.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return text


def between(page: str, rows: Sequence[str]) -> str:
    """The page with these rows between its markers.

    Raises:
        ReportError: it has not both markers, once each and in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ReportError(f"page: got one without its two markers; allowed is one with {BEGIN} and {END}")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    return "\n".join([head + BEGIN, "", *rows, "", END]) + tail


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="+", type=Path, help="folders that gpu-check wrote")
    parser.add_argument("--to", type=Path, required=True, help="results/<machine>")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    try:
        found = gather(options.out)
        place = options.to.as_posix() if not options.to.is_absolute() else f"results/{options.to.name}"
        page = between(options.page.read_text(encoding="utf-8"), rows_of_page(found, place))
        text = summary(found)
    except ReportError as problem:
        print(problem, file=sys.stderr)
        return 1
    options.to.mkdir(parents=True, exist_ok=True)
    for name in found:
        (options.to / name).write_bytes(b"".join((f / name).read_bytes() for f in options.out if (f / name).exists()))
    logs = [(folder / LOG).read_bytes() for folder in options.out if (folder / LOG).exists()]
    (options.to / LOG).write_bytes(b"".join(logs))
    (options.to / "README.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    options.page.write_text(page, encoding="utf-8")
    print(f"{options.to}: {len(found)} files and README.md; {options.page}: the rows between its markers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
