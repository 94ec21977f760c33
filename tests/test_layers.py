"""Imports go downward only: the table of layers in DESIGN section 2, held to by reading the sources."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    [
        *ROOT.glob("kernels/*.py"),
        *(p for d in ("ops", "functional", "nn", "quant", "data", "models") for p in ROOT.glob(f"fasttx/{d}/**/*.py")),
    ]
)

# layer -> what it may import besides the standard library: parts of fasttx, and other people's packages. What is not
# listed (cli, bench, the top level, testing) may import everything. `testing` and `triton_interpreter` know only torch,
# triton and numpy.
MAY_IMPORT = {
    "kernels": {"fasttx.kernels", "torch", "triton"},
    "ops": {"fasttx.ops", "fasttx.kernels", "fasttx._C", "torch"},
    "functional": {"fasttx.functional", "fasttx.ops", "torch"},
    "nn": {"fasttx.nn", "fasttx.functional", "fasttx.ops", "torch"},
    "data": {"fasttx.data", "torch"},
    "quant": {"fasttx.quant", "fasttx.nn", "fasttx.functional", "fasttx.ops", "torch", "transformers"},
    "models": {
        "fasttx.models", "fasttx.quant", "fasttx.nn", "fasttx.functional", "fasttx.ops", "fasttx.testing", "torch",
        "transformers", "peft", "sentence_transformers",
    },
}  # fmt: skip
THIRD_PARTY = {
    "fasttx",
    "torch",
    "triton",
    "transformers",
    "numpy",
    "peft",
    "sentence_transformers",
    "accelerate",
    "typer",
    "rich",
    "matplotlib",
}


def imported(path: pathlib.Path) -> set[str]:
    """What a file imports, wherever the statement stands: `fasttx.<part>`, or the first name of another package."""
    inside = path.relative_to(ROOT).parts
    package = inside[:-1] if inside[0] == "fasttx" else ("fasttx", "kernels")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = [*(package[: len(package) - node.level + 1] if node.level else ()), *(node.module or "").split(".")]
            found |= {".".join(filter(None, [*stem, a.name])) for a in node.names}
    return {".".join(name.split(".")[: 2 if name.startswith("fasttx.") else 1]) for name in found}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    inside = path.relative_to(ROOT).parts
    allowed = MAY_IMPORT["kernels" if inside[0] == "kernels" else inside[1]]
    wrong = {m for m in imported(path) if m.split(".")[0] in THIRD_PARTY} - allowed
    assert not wrong, f"{'/'.join(inside)} imports {sorted(wrong)}; its layer may import {sorted(allowed)}"


def test_the_reader_sees_imports():
    assert {"fasttx.functional", "torch"} <= imported(ROOT / "fasttx/nn/softmax.py")
    assert {"fasttx.kernels", "torch", "triton", "typing"} <= imported(ROOT / "kernels/softmax.py")
