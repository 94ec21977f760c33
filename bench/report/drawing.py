"""How the report's pictures look: large type, few colours, readable on light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, OURS = "#1f2933", "#75808c", "#0b7a75"
OTHERS = ("#8d99ae", "#d17b0f", "#6a5acd", "#b23a48", "#4f772d")
ON_DARK = {
    INK: "#e8ecf1",
    MUTED: "#98a4b3",
    OURS: "#2fbfb6",
    "#6a5acd": "#a99df5",
    "#b23a48": "#f0707f",
    "#4f772d": "#8fc26a",
}
"""Colour -> what takes its place on a dark page; the others are seen on both."""
DPI = 150


@contextmanager
def canvas(title: str, height: float = 4.6, panels: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure with its axes, in the report's type."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.size": 15,
        "svg.fonttype": "path",
        "svg.hashsalt": title,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=[OURS, *OTHERS]),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots(1, panels)
        figure.suptitle(title, fontsize=17, fontweight="bold", x=0.01, ha="left")
        yield figure, axes


def colours(names: Sequence[str]) -> dict[str, str]:
    """Ours in one colour, the others in turn."""
    others = [name for name in names if not name.startswith("fasttx")]
    found = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    return {name: found.get(name, OURS) for name in names}


def legend(axes: Axes, **more: Any) -> None:
    axes.legend(frameon=False, fontsize=14, **more)


def bars(axes: Axes, rows: Sequence[tuple[str, float, str, str]], *, line: float | None = None) -> None:
    """Horizontal bars of (label, value, text at its end, colour), the first at the top."""
    at = range(len(rows))
    axes.barh(at, [value for _, value, _, _ in rows], color=[colour for *_, colour in rows], height=0.72)
    for i, (_, value, text, _) in enumerate(rows):
        axes.text(value, i, f" {text}", va="center", fontsize=14)
    axes.set_yticks(at, [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    if line is not None:
        axes.axvline(line, color=INK, linewidth=1.4)


def svg_of(figure: Figure) -> str:
    """The figure as SVG without a background, whose ink follows the reader's light or dark."""
    held = io.StringIO()
    figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    text = held.getvalue()
    for i, colour in enumerate(ON_DARK):
        text = re.sub(re.escape(colour), f"var(--c{i}, {colour})", text, flags=re.I)
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(ON_DARK))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(ON_DARK.values()))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found.group(1) + style, text, count=1)


def save(figure: Figure, stem: Path) -> str:
    """Writes `stem`.svg and `stem`.png; the SVG."""
    text = svg_of(figure)
    stem.with_suffix(".svg").write_text(text, encoding="utf-8")
    figure.savefig(stem.with_suffix(".png"), dpi=DPI, facecolor="white")
    return text
