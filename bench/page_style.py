"""What the pages of benchmarks share: one HTML file without anything from elsewhere, in light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

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


def document(title: str, parts: Iterable[str], more_style: str = "") -> str:
    """The whole page around its parts, which are HTML already."""
    name = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    lines = ["<!doctype html>", '<html lang="en">', f"<head>{head}<style>{STYLE}{more_style}</style></head>", "<body>"]
    return "\n".join([*lines, *parts, "</body></html>", ""])
