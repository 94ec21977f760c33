"""Tables as plain text that fit the terminal: 80 columns where there is none."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

INDENT = "    "


def columns() -> int:
    """How wide a line may be: the terminal's width, the variable COLUMNS, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def wrapped(text: str, indent: str = INDENT) -> list[str]:
    """Lines of `text` that fit, each after `indent`; a word longer than a line stays whole."""
    width = max(len(indent) + 20, columns())
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def heading(text: str) -> str:
    """The first line of what is printed, and what of it does not fit, indented below."""
    width = max(40, columns())
    return "\n".join(
        textwrap.wrap(text, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table. A last cell that does not fit stands below its row, indented; `header` may be all "".

    The other cells are short, and never broken.
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    before = sum(width + 2 for width in widths)
    found = []
    for line in lines:
        *cells, last = line
        start = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        if before + len(last) <= columns():
            found.append(f"{start}  {last}".rstrip())
        else:
            found += [start.rstrip(), *wrapped(last)]
    found.insert(1, "-" * min(columns(), max(map(len, found))))
    return found
