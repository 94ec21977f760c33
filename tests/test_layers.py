"""Imports go down only: the table of layers in CONTRIBUTING.md, held to by reading the sources."""

from __future__ import annotations

import ast
import pathlib
import re
import sys

import pytest

from fasttx.ops import OPS as TABLE_OF_OPS

ROOT = pathlib.Path(__file__).parents[1]
BESIDE = ("kernels", "bench")  # in the repository's root; fasttx/ has links to them


def layer_of(path: pathlib.Path) -> str:
    """The name that a file's row has in the table: a folder, a file of fasttx/ by itself, or `fasttx` for the rest."""
    inside = path.relative_to(ROOT).parts
    if inside[0] in BESIDE:
        return inside[0]
    return "fasttx" if inside[1].startswith("__") else inside[1].removesuffix(".py")


SOURCES = sorted(
    [path for folder in BESIDE for path in ROOT.glob(f"{folder}/**/*.py")]
    + [path for path in ROOT.glob("fasttx/**/*.py") if path.relative_to(ROOT).parts[1] not in BESIDE]
)


def table() -> dict[str, set[str]]:
    """Layer -> what its files may import: parts of fasttx as `fasttx.<part>`, and other packages."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Layers", 1)[1].split("\n## ", 1)[0]
    found = {}
    for line in re.findall(r"^\| `.*$", text, re.M):
        layer, _, parts, packages = (cell.strip() for cell in line.strip("|").split("|"))
        name = layer.strip("`")
        own = {f"fasttx.{part}" if part != "fasttx" else part for part in [*re.findall(r"`(\w+)`", parts), name]}
        found[name] = own | set(re.findall(r"`(\w+)`", packages))
    return found


TABLE = table()


def imported(path: pathlib.Path) -> set[str]:
    """What a file imports, wherever the statement stands: `fasttx.<part>`, or the first name of another package.

    A kernel that is named in a string, to be imported at the first call, counts.
    """
    inside = path.relative_to(ROOT).parts
    package = inside[:-1] if inside[0] == "fasttx" else ("fasttx", *inside[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = [*(package[: len(package) - node.level + 1] if node.level else ()), *(node.module or "").split(".")]
            found |= {".".join(filter(None, [*stem, a.name])) for a in node.names}
        elif isinstance(node, ast.Constant) and re.match(r"fasttx\.(kernels|_C|_C_cpu)\b[\w.:]*$", str(node.value)):
            found.add(re.split(r"[:]", node.value)[0])
    names = set()
    for name in found:
        parts = ["fasttx", *name.split(".")] if name.split(".")[0] == "bench" else name.split(".")
        if parts[0] == "fasttx":
            is_part = (
                len(parts) > 1 and (ROOT / "fasttx" / parts[1]).exists() | (ROOT / "fasttx" / f"{parts[1]}.py").exists()
            )
            names.add(".".join(parts[:2]) if is_part or parts[1:2] in (["_C"], ["_C_cpu"]) else "fasttx")
        elif parts[0] not in sys.stdlib_module_names:
            names.add(parts[0])
    return names


def test_every_file_has_a_layer():
    assert {layer_of(path) for path in SOURCES} == set(TABLE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    allowed = TABLE[layer_of(path)]
    wrong = imported(path) - allowed
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; its layer may import {sorted(allowed)}"


@pytest.mark.parametrize("layer", TABLE)
def test_the_table_allows_no_more_than_is_used(layer):
    used = set().union(*(imported(path) for path in SOURCES if layer_of(path) == layer))
    own = layer if layer == "fasttx" else f"fasttx.{layer}"
    assert TABLE[layer] - used <= {own}


def test_layers_have_an_order():
    """No layer may import one that may import it."""
    above = {layer: {name.removeprefix("fasttx.") for name in TABLE[layer]} & set(TABLE) - {layer} for layer in TABLE}
    above["fasttx"].discard("cli")  # `python -m fasttx` starts it
    while above:
        lowest = [layer for layer, below in above.items() if not below & set(above)]
        assert lowest, f"a circle of imports among {sorted(above)}"
        for layer in lowest:
            del above[layer]


def test_the_reader_sees_imports():
    assert {"fasttx.functional", "torch"} <= imported(ROOT / "fasttx/nn/softmax.py")
    assert {"fasttx.kernels", "torch", "triton"} <= imported(ROOT / "kernels/softmax.py")
    assert {"fasttx.kernels", "fasttx.ops"} <= imported(ROOT / "fasttx/ops/softmax/op.py")
    assert {"fasttx", "fasttx.bench"} <= imported(ROOT / "fasttx/cli/demo_run.py")
    assert "fasttx.cli" not in TABLE["bench"] and "fasttx.kernels" not in TABLE["models"]


OPS = {p.parent.name for p in ROOT.glob("fasttx/ops/*/op.py")}
CALLS = {("linear_cross_entropy", "cross_entropy")}
"""Ops of which the first launches the second as it is."""


def op_of(file: str) -> str | None:
    """The op that kernels/<file>.py belongs to; None for a file that several share."""
    return max((op for op in OPS if file == op or file.startswith(f"{op}_")), key=len, default=None)


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*.py")), ids=lambda p: p.stem)
def test_a_kernel_borrows_nothing_from_another_op(path):
    """What two ops need stands in a file of its own (rows, reduce, layer_norm, ...)."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
    borrowed = {op_of(node.module or "") for node in nodes} - {None, op_of(path.stem)}
    assert {(op_of(path.stem), op) for op in borrowed} <= CALLS


def test_every_op_has_files_of_its_name():
    assert OPS == set(TABLE_OF_OPS)
    for op in OPS:
        assert (ROOT / f"kernels/{op}.py").is_file() and (ROOT / f"docs/kernels/{op}.md").is_file(), op
        assert (ROOT / f"fasttx/ops/{op}/cuda.py").is_file() == (ROOT / f"csrc/{op}").is_dir(), op
