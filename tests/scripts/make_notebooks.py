"""Writes examples/notebooks: two of the examples as notebooks, a cell for each part of the program.

python tests/scripts/make_notebooks.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("fine_tune", "embeddings")


def cell(kind: str, number: int, text: str) -> dict[str, object]:
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True), **more}


def notebook(name: str) -> str:
    """The example as JSON; a notebook has no command line and no `__file__`."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    about, code = re.fullmatch(r'"""(.*?)"""\n+(.*)', text, re.S).groups()  # type: ignore[union-attr]
    code = code.replace("parse_args()", "parse_args([])").replace("Path(__file__).parent", 'Path("..")')
    parts = re.split(r"\n{2,}(?=\S)", code.strip())
    cells = [cell("markdown", 0, f"# {name}\n\n{about}")]
    cells += [cell("code", number, part) for number, part in enumerate(parts, start=1)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in NAMES:
        (EXAMPLES / "notebooks" / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
