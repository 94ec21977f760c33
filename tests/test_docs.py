"""What the pages say of the tree: files, names, commands and links that they name exist, and their Python parses."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
if not LISTED:
    pytest.skip("not a git checkout: what belongs to the tree is not known", allow_module_level=True)
FILES = set(LISTED)
FOLDERS = {str(parent) for name in FILES for parent in Path(name).parents} - {"."}
PAGES = sorted(name for name in FILES if name.endswith(".md") and not name.startswith("results/"))
SITE = ("mkdocs.yml", "buildsystem/site_pages.py", "tests/test_site.py")
"""They name pages of the site, some of which are made with it; `make docs` ends at one that it lacks."""
SOURCE = (".py", ".pyi", ".cu", ".cuh", ".h", ".cpp", ".md", ".toml")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def code_in(page: str) -> list[str]:
    """What stands between backquotes, blocks of code left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S))


def is_path(code: str) -> bool:
    """Whether it reads as a file or folder of the tree: one word, with its folder or as a source file."""
    if not re.fullmatch(r"[\w.*<>/-]+", code) or code.startswith(("/", ".")):
        return False
    return code.endswith(SOURCE) or code.split("/")[0] in {name.split("/")[0] for name in FOLDERS} and "/" in code


def found(path: str) -> bool:
    """Whether the tree has it, `<op>` and `*` standing for anything; an inner file may be named by its last parts."""
    pattern = re.sub(r"<\w+>", "*", path.rstrip("/"))
    return any(fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}") for name in FILES | FOLDERS)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    linked = {"fasttx/kernels", "fasttx/bench"}  # links to folders
    absent = {"kernels/__init__.py", "bench.csv", "results/<machine>/", "results/<machine>"}  # of which pages say so
    missing = [code for code in code_in(page) if is_path(code) and code not in linked | absent and not found(code)]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_names_of_fasttx_that_a_page_gives_exist(page: str) -> None:
    pattern = r"\bfasttx(?:\.\w+)+"
    named = {name for code in code_in(page) + blocks_of(page, "python") for name in re.findall(pattern, code)}
    missing = []
    for name in sorted(named - {"fasttx._C", "fasttx._C_cpu", "fasttx.egg"}):
        value = importlib.import_module("fasttx")
        for part in name.split(".")[1:]:
            value = getattr(value, part, None) or _submodule(value, part)
        if value is None:
            missing.append(name)
    assert not missing


def _submodule(parent: object, part: str) -> object:
    try:
        return importlib.import_module(f"{getattr(parent, '__name__', '')}.{part}")
    except (ImportError, ValueError):
        return None


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    missing = []
    for text, target in re.findall(r"\[([^]\n]*)\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in path or path == "../../actions/workflows/ci.yml/badge.svg":  # of the repository's host
            continue
        if text.endswith(SOURCE) and not (path == text or path.endswith(f"/{text}") or text.endswith(f"/{path}")):
            missing.append(f"{text}: {target}")  # it promises another file
        to = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r"^#+ (.*)$", to.read_text(encoding="utf-8"), re.M) if anchor and to.is_file() else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if not to.exists() or anchor and anchor not in anchors:
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_gives_exist(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.M)
    code = code_in(page) + [block for language in ("", "sh") for block in blocks_of(page, language)]
    made = {target for text in code for target in re.findall(r"^make ([a-z][\w-]*)", text, re.M)}
    modules = {name for text in code for name in re.findall(r"python -m (bench(?:\.\w+)+)", text)}
    assert made <= set(targets)
    assert not [name for name in modules if f"{name.replace('.', '/')}.py" not in FILES]


@pytest.mark.parametrize("page", PAGES)
def test_constants_that_a_page_names_are_in_the_sources(page: str) -> None:
    named = {name for code in code_in(page) for name in re.findall(r"\b[A-Z][A-Z\d]*(?:_[A-Z\d]+)+\b", code)}
    sources = [text_of(name) for name in FILES if named and name.endswith((*SOURCE[:-2], ".toml", "Makefile"))]
    assert not [name for name in sorted(named) if not any(name in text for text in sources)]


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_parses(page: str) -> None:
    for block in blocks_of(page, "python"):
        ast.parse(block)


def test_no_text_cites_a_document_that_is_not_here() -> None:
    suffixes = (*SOURCE, ".yml", ".txt")
    apart = ("bench/texts/", *SITE)
    texts = {name: text_of(name) for name in FILES if name.endswith(suffixes) and not name.startswith(apart)}
    cited = {(name, path) for name, text in texts.items() for path in re.findall(r"[\w./<>-]*\w\.md\b", text)}
    missing = [(name, path) for name, path in cited if not found(re.sub(r"^(?:\.\./)+", "", path))]
    assert not missing
