"""What the site needs beyond docs/: pages that stand elsewhere, the reference of the public names, links into the tree.

mkdocs calls these functions. A link to a file of the tree leads to that file's page where it has one; else its text
stays, and says where to look. A link that shows a page's file name shows its title on the site.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "tests/emulator/README.md": "emulator.md",
}
"""Pages that stand outside of docs/, and their names on the site."""
PUBLIC = ("fasttx", "fasttx.nn", "fasttx.functional", "fasttx.data", "fasttx.testing")
"""Modules whose ``__all__`` is the reference, a page each."""
RESULTS = {
    "fasttx": (
        "fasttx.models.report.Report",
        "fasttx.models.report.Row",
        "fasttx.models.prune.PruningReport",
        "fasttx.models.diagnostics.verify.Verification",
        "fasttx.models.diagnostics.explain.Explanation",
    )
}
"""What functions of a module return, besides: classes that nobody makes by their name."""
LINK = re.compile(r"(!?)\[([^]\n]*)\]\(([^)\s]+)\)")


def reference(name: str) -> str:
    """The page of a module: what it is, and each of its public names."""
    module = importlib.import_module(name)
    about = (inspect.getdoc(module) or "").split("\n\n", 1)[0].split(": ", 1)[-1]
    lines = [f"# {name}", f"{about[:1].upper()}{about[1:]}"]
    for public in module.__all__:
        value = getattr(module, public)
        if not inspect.ismodule(value):
            lines.append(f"::: {value.__module__}.{value.__qualname__}")
    lines += [f"::: {path}" for path in RESULTS.get(name, ())]
    return "\n\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that stand elsewhere, and the reference."""
    for name in PUBLIC:
        page = f"api/{name.rpartition('.')[2]}.md"
        files.append(File.generated(config, page, content=reference(name)))
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name functions as Sphinx does; here the name alone will do."""
    return re.sub(r":(?:func|class|meth|mod|data|attr):<code>~?", "<code>", html)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links into the tree into links of the site, or into their text."""
    name = page.file.src_uri
    source = next((path for path, on_site in ELSEWHERE.items() if on_site == name), f"docs/{name}")

    def replaced(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in path or not path:
            return match.group(0)
        to = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if to.startswith("../") and image:  # a badge, which the repository's host draws
            return ""
        page_of = ELSEWHERE.get(to, to.removeprefix("docs/") if to.startswith("docs/") else None)
        if page_of is None or not page_of.endswith((".md", ".png", ".svg")):
            return text
        if text.endswith(".md"):  # names a file of the tree; the site has titles
            heading = re.search(r"^# (.*)$", (ROOT / to).read_text(encoding="utf-8"), re.M)
            text = heading.group(1) if heading else text
        relative = posixpath.relpath(page_of, posixpath.dirname(name) or ".")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(replaced, markdown)
