"""Every name that the sources import from one another exists, inside functions too, which no type checker reads."""

from __future__ import annotations

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("fasttx", "bench", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def _imported(path: pathlib.Path) -> list[tuple[str, str]]:
    """The (module, name) pairs that a file imports from the packages of this checkout."""
    pairs = []
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(package[: len(package) - node.level + 1]) if node.level else []
        module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
        if module.split(".")[0] in ("fasttx", "bench", "tests"):
            pairs += [(module, alias.name) for alias in node.names if alias.name != "*"]
    return pairs


@pytest.mark.parametrize("folder", ["fasttx", "bench", "examples", "tests"])
def test_imported_names_exist(folder: str) -> None:
    missing, seen = [], 0
    for path in SOURCES:
        if path.parts[0] != folder:
            continue
        for module, name in _imported(path):
            seen += 1
            try:
                found = hasattr(importlib.import_module(module), name)
                found = found or importlib.import_module(f"{module}.{name}") is not None
            except ModuleNotFoundError as error:
                if not str(error.name).startswith(("fasttx", "bench", "tests")):
                    continue  # a library that is not installed here
                found = False
            if not found:
                missing.append(f"{path}: from {module} import {name}")
    assert seen > 10
    assert not missing, "\n".join(missing)
