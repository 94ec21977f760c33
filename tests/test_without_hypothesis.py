"""Without hypothesis, as on a GPU machine without a network, only the tests that need it are skipped, and say why."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import allowed

ROOT = Path(__file__).resolve().parents[1]
ABSENT = "raise ModuleNotFoundError(\"No module named 'hypothesis'\", name='hypothesis')\n"
"""Stands first on the path, and is found in place of the package."""
COLLATOR = "tests/data/test_packing_collator.py"


def without_hypothesis(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (place / "hypothesis.py").write_text(ABSENT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    env["PYTEST_ADDOPTS"] = "-p no:hypothesispytest"  # its plugin, which a machine without it has not either
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def at_import(path: Path) -> set[str]:
    """The packages that a file needs to be collected: those imported outside of functions."""
    found, left = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            found.add(ast.literal_eval(node.args[0]))  # skips the whole file
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            left += ast.iter_child_nodes(node)
    return found


def has_other_tests(path: Path) -> bool:
    """Whether a test in it is no property."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    tests = [each for each in functions if each.name.startswith("test_")]
    return not tests or any("given(" not in "".join(map(ast.unparse, each.decorator_list)) for each in tests)


def test_no_test_goes_with_the_properties() -> None:
    """A file that is skipped as a whole has nothing else in it."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert "pytest" in at_import(Path(__file__)) and len(files) > 150
    need = [path for path in files if "hypothesis" in at_import(path)]
    assert need and [str(path.relative_to(ROOT)) for path in need if has_other_tests(path)] == []


def test_properties_are_skipped_by_name_and_the_rest_runs(tmp_path: Path) -> None:
    done = without_hypothesis(tmp_path, "pytest", "-rs", "-p", "no:cacheprovider", COLLATOR)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not import 'hypothesis'" in done.stdout
    passed, skipped = (int(re.search(rf"(\d+) {word}", done.stdout)[1]) for word in ("passed", "skipped"))
    assert passed > 30 and skipped == 1


@pytest.mark.slow
def test_every_file_for_a_gpu_is_collected(tmp_path: Path) -> None:
    """A machine with a GPU may have pytest and nothing besides."""
    done = without_hypothesis(tmp_path, "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *allowed.ON_A_GPU)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/gpu/test_graphs.py" in done.stdout
