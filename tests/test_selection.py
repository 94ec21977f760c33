"""The table of tests that run a selection of their cases each time names tests that exist, and keeps some of each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import selection

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("test", selection.EACH_TIME)
def test_a_selection_runs_each_time(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    chosen = selection.EACH_TIME[test]
    if selection.collected[test]:  # as where all tests are
        least = len(chosen) if isinstance(chosen, tuple) else 1
        assert least <= selection.kept[test] < selection.collected[test]


def test_names_in_classes_and_without_cases() -> None:
    assert selection.test_of("tests/a.py::TestB::test_c[d-[e]]") == ("tests/a.py::test_c", "d-[e]")
    assert selection.test_of("tests/a.py::test_c") == ("tests/a.py::test_c", "")
