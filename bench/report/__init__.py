"""What is reached of what is asked: the tables in results/ beside the goals, as a page, Markdown and pictures.

    python -m fasttx bench report results [--out report]

Writes report.html, which holds its pictures and needs nothing else, README.md, and each picture as SVG and PNG. A goal
that no table answers is listed as not measured, a picture without a table as left out, with the command that brings it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import Report

PLOTS = "plots"
NO_MATPLOTLIB = "all pictures: matplotlib is not installed. `pip install matplotlib` brings them."


def build(results: Sequence[Path], out: Path) -> Report:
    """Reads everything, then writes into the folder `out`, which is made.

    Raises:
        ResultError: see :func:`bench.report.results.read`; nothing is written then.
    """
    from .page import Report, markdown, page
    from .pictures import PICTURES
    from .results import read
    from .verdicts import verdicts

    tables = [table for path in results for table in read(path)]
    (out / PLOTS).mkdir(parents=True, exist_ok=True)
    why = ""
    try:
        drawn = [(picture, picture.draw(tables, out / PLOTS / picture.name)) for picture in PICTURES]
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] != "matplotlib":
            raise
        why, drawn = NO_MATPLOTLIB, [(picture, None) for picture in PICTURES]
    report = Report(verdicts(tables), drawn, tables, why)
    (out / "report.html").write_text(page(report), encoding="utf-8")
    (out / "README.md").write_text(markdown(report, PLOTS), encoding="utf-8")
    return report


def main(arguments: list[str] | None = None, watch: Any = None) -> int:
    from ..options import parser_of
    from .results import ResultError

    parser = parser_of("report")
    options = parser.parse_args(arguments)
    try:
        report = build(options.results, options.out)
    except ResultError as problem:
        parser.error(str(problem))
    print(report.about)
    for line in report.left_out:
        print(f"left out: {line.replace('`', '')}")
    print(f"written: {options.out}/report.html, README.md, {PLOTS}/")
    return 0
