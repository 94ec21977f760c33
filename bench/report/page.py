"""The report as Markdown and as one HTML page that holds its pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..page_style import document
from .pictures import Picture
from .results import Table
from .verdicts import NO, YES, Verdict, summary

TITLE = "What fasttx reaches"
HEADER = ("", "what", "goal", "ours", "best peer", "ratio", "met", "hardware", "command")
FILES = ("file", "what it holds", "rows", "hardware", "left out")
STYLE = """
body { max-width: 78rem; } img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; white-space: normal; }
td.num { text-align: right; white-space: nowrap; } td.yes { color: #1a7f37; font-weight: 600; }
td.no { color: #cf222e; font-weight: 600; } td.open { color: #888; } code { font-size: .85em; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { td.yes { color: #4ac26b; } td.no { color: #ff7b72; } }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 2rem; }
figure { margin: 0; } figcaption { color: #888; } table { min-width: 60rem; }
"""


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    Attributes:
        verdicts: a row each.
        drawn: pictures and their SVG, by value; None where no table has what it shows.
        tables: that were read.
        no_pictures: why none was drawn, or "".
    """

    verdicts: Sequence[Verdict]
    drawn: Sequence[tuple[Picture, str | None]]
    tables: Sequence[Table]
    no_pictures: str = ""

    @property
    def left_out(self) -> list[str]:
        """A line for each picture that is missing."""
        if self.no_pictures:
            return [self.no_pictures]
        return [f"{p.name}: no table has it yet. `{p.command}` brings it." for p, svg in self.drawn if svg is None]

    @property
    def rehearsed(self) -> int:
        return sum(table.rehearsed for table in self.tables)

    @property
    def about(self) -> str:
        text = summary(self.verdicts)
        if self.rehearsed:
            text += f" {self.rehearsed} rows are of a rehearsal: they say nothing of a machine and are left out."
        return text


def _rows(found: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """A tuple for each verdict; what stands in the row above of the same target is not said again."""
    rows, last, command = [], "", ""
    for v in found:
        name, what = ("", "") if v.target.name == last else (v.target.name, v.target.what)
        shown = "" if v.command == command and not name else v.command
        last, command = v.target.name, v.command
        ours = (
            f"{v.figure.ours} ({v.figure.where})" if v.figure and v.figure.where else v.figure.ours if v.figure else ""
        )
        peer = v.figure.peer if v.figure else ""
        goal = f"{v.asked}: {v.goal.beside}"
        rows.append((name, what, goal, ours, peer, v.ratio, v.met, v.hardware, shown))
    return rows


def _files(tables: Sequence[Table]) -> list[tuple[str, ...]]:
    return [
        (
            f"{t.path.parent.name}/{t.path.name}",
            t.kind,
            str(len(t.rows)),
            f"{t.machine}, commit {t.commit}" if t.rows else "",
            f"{t.rehearsed} of a rehearsal" if t.rehearsed else "",
        )
        for t in tables
    ]


def markdown(report: Report, folder: str) -> str:
    """The report as Markdown; `folder` is where its pictures lie beside it."""

    def table(header: Sequence[str], rows: Sequence[Sequence[str]], code: int | None = None) -> list[str]:
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in rows:
            cells = [cell.replace("|", "/") for cell in row]
            if code is not None and cells[code] not in ("", "none yet"):
                cells[code] = f"`{cells[code]}`"
            lines.append("| " + " | ".join(cells) + " |")
        return lines

    lines = [
        f"# {TITLE}",
        "",
        report.about,
        "",
        "## Goals",
        "",
        *table(HEADER, _rows(report.verdicts), len(HEADER) - 1),
    ]
    lines += ["", "## Pictures"]
    for picture, svg in report.drawn:
        if svg is not None:
            lines += ["", f"![{picture.about}]({folder}/{picture.name}.svg)", "", picture.about]
    lines += ["", *(f"- Left out: {line}" for line in report.left_out)] if report.left_out else []
    return "\n".join([*lines, "", "## Files", "", *table(FILES, _files(report.tables)), ""])


def _cell(name: str, text: str) -> str:
    if name == "met":
        kind = {YES: "yes", NO: "no"}.get(text, "open")
        return f'<td class="{kind}">{escape(text)}</td>'
    if name == "ratio":
        return f'<td class="num">{escape(text)}</td>'
    return f"<td><code>{escape(text)}</code></td>" if name == "command" and text else f"<td>{escape(text)}</td>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ["<tr>" + "".join(map(_cell, header, row)) + "</tr>" for row in rows]
    return ['<div class="scroll"><table>', f"<tr>{head}</tr>", *body, "</table></div>"]


def page(report: Report) -> str:
    """The report as one HTML file."""
    parts = [f"<h1>{TITLE}</h1>", f'<p class="answer">{escape(report.about)}</p>']
    parts.append('<div class="pictures">')
    for picture, svg in report.drawn:
        if svg is not None:
            data = base64.b64encode(svg.encode()).decode()
            image = f'<img alt="{escape(picture.about)}" src="data:image/svg+xml;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{escape(picture.about)}</figcaption></figure>")
    parts.append("</div>")
    parts += [f"<p><small>Left out: {escape(line.replace('`', ''))}</small></p>" for line in report.left_out]
    parts += ["<h2>Goals</h2>", *_table(HEADER, _rows(report.verdicts)), "<h2>Files</h2>"]
    return document(TITLE, [*parts, *_table(FILES, _files(report.tables))], STYLE)
