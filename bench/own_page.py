"""The page of bench.own: one HTML file without anything from elsewhere, in light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .own_arms import FASTTX, PLAIN
from .page_style import document

if TYPE_CHECKING:
    from .own import Own

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
    return document(f"fasttx: {name}", [*parts, "</dl>"])


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
