"""The page of bench.own: one HTML file without anything from elsewhere, in light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .own_arms import FASTTX, PLAIN

if TYPE_CHECKING:
    from .own import Own

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.answer { border-left: 4px solid #2a7ae2; padding: .5rem 1rem; font-size: 1.1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8886; white-space: nowrap; }
th:first-child, td:first-child, td.note { text-align: left; } td.note { white-space: normal; }
tr.ours { font-weight: 600; } td.bar { width: 30%; min-width: 6rem; } .bar div { background: #2a7ae2; height: .8rem; }
tr.plain .bar div { background: #888; } small, dl { color: #888; } dt { float: left; clear: left; min-width: 13rem; }
"""
NOTE = (
    "Texts are tokenised beforehand and keep their order. A time is the median of rounds in which all take turns, over "
    "all texts. The gain is over the model as it is. The difference is of the answers, over the largest of them."
)


def page(found: Own) -> str:
    """The whole page."""
    name = Path(found.model).name if Path(found.model).is_dir() else found.model  # a folder is nobody else's business
    parts = [f"<h1>{escape(name)}: what fasttx brings</h1>", f'<p class="answer">{escape(found.sentence)}</p>']
    for size in dict.fromkeys(row["batch"] for row in found.rows):
        parts += _table(size, [row for row in found.rows if row["batch"] == size])
    parts.append(f"<p><small>{escape(NOTE)}</small></p><h2>Machine</h2><dl>")
    parts += [
        f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>"
        for what, value in found.machine.items()
        if value != "missing"
    ]
    title = escape(f"fasttx: {name}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        f"<head>{head}<style>{STYLE}</style></head>",
        "<body>",
        *parts,
        "</dl>",
    ]
    return "\n".join([*lines, "</body></html>", ""])


def _table(size: int, rows: list[dict[str, Any]]) -> list[str]:
    """The arms of one size of batches; a bar is as long as an arm is fast."""
    head = f"<h2>Batches of {size}: {rows[0]['real']:.0%} of the tokens are real</h2>"
    fastest = max((row["texts_per_s"] for row in rows if row["status"] == "ok"), default=1.0)
    lines = [
        head,
        '<div class="scroll"><table><tr><th></th><th>texts/s</th><th>gain</th><th>difference</th><th></th></tr>',
    ]
    for row in rows:
        kind = {FASTTX: "ours", PLAIN: "plain"}.get(row["arm"], "")
        arm = escape(row["arm"])
        if row["status"] != "ok":
            lines.append(f'<tr><td>{arm}</td><td class="note" colspan="4">{escape(row["status"])}</td></tr>')
            continue
        gain = f"{row['gain']:.2f} x" if "gain" in row else ""
        difference = f"{row['difference']:.1e}" if row.get("difference") is not None else ""
        bar = f'<div style="width: {100 * row["texts_per_s"] / fastest:.0f}%"></div>'
        cells = f"<td>{arm}</td><td>{row['texts_per_s']:.1f}</td><td>{gain}</td><td>{difference}</td>"
        lines.append(f'<tr class="{kind}">{cells}<td class="bar">{bar}</td></tr>')
    return [*lines, "</table></div>"]
