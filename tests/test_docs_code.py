"""The Python of pages that promise what it prints: each section runs after the page's opening, and prints that."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from models.test_pretrained import directory

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/faq.md", "docs/export.md")
NAME = "sentence-transformers/all-MiniLM-L6-v2"
SLOW = {"ONNX", "AOTInductor", "int8"}
NEEDS = {"ONNX": ("onnx", "onnxscript", "onnxruntime")}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def sections(page: str) -> dict[str, list[str]]:
    """Heading -> the blocks of Python below it, the page's opening first; only those of which there are any."""
    opening, *parts = re.split(r"^## ", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    found = {part.split("\n", 1)[0]: BLOCK.findall(part) for part in parts}
    return {heading: [*BLOCK.findall(opening), *blocks] for heading, blocks in found.items() if blocks}


CASES = [
    pytest.param(
        page,
        heading,
        id=f"{Path(page).stem}-{re.sub(r'[^a-z]+', '-', heading.lower()).strip('-')}",
        marks=[pytest.mark.slow] * (heading in SLOW),
    )
    for page in PAGES
    for heading in sections(page)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "heading"), CASES)
def test_a_section_runs_and_prints_what_it_promises(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in NEEDS.get(heading, ()):
        pytest.importorskip(module)
    (tmp_path / NAME).parent.mkdir()
    (tmp_path / NAME).symlink_to(directory())  # what from_pretrained takes before it asks the hub
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in sections(page)[heading]:
        promised = re.findall(r"# prints (.*)$", block, re.M)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"{page}: {heading}", "exec"), names)
        assert [line for line in printed.getvalue().splitlines() if line in promised] == promised


def test_pages_promise_something() -> None:
    for page in PAGES:
        blocks = [block for blocks in sections(page).values() for block in blocks]
        assert sum("# prints " in block for block in blocks) >= 3, page
