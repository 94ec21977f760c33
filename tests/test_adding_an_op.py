"""An op has one name, files by that name, and a line in few others: those that CONTRIBUTING lists."""

from __future__ import annotations

import collections
import pathlib
import re

import pytest

from fasttx.ops import OPS

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [
    path
    for pattern in ("fasttx/**/*.py", "kernels/*.py", "bench/**/*.py", "csrc/**/*.[ch]*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.relative_to(ROOT).parts[1] not in ("kernels", "bench")
]
ALONE = "kl_div"
"""An op that no other op, and no model, is made of: nobody names it but because it exists."""

GOALS = {"bench/report/kernel_targets.py"}
"""It names cases of benchmarks for which docs/targets.md has a goal. A new op has none, and needs no line there."""


def listed() -> set[str]:
    """The files that CONTRIBUTING says get a line of a new op."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add an op", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^- `([\w/.]+)`", text, re.M))


def its_own(path: str, op: str) -> bool:
    """Whether a file is named after the op, in a folder of it, or holds modules."""
    folder, _, name = path.rpartition("/")
    return f"/{op}/" in path or name.split(".")[0] in (op, f"_{op}") or folder == "fasttx/nn"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_files_by_its_name(op: str) -> None:
    for name in ("op", "cases", "composed", "reference"):
        assert (ROOT / f"fasttx/ops/{op}/{name}.py").is_file(), name
    assert (ROOT / f"kernels/{op}.py").is_file() and (ROOT / f"bench/workloads/_{op}.py").is_file()
    cuda = any(impl.backend == "cuda" for impl in OPS[op].impls)
    assert (ROOT / f"csrc/{op}").is_dir() == (ROOT / f"fasttx/ops/{op}/cuda.py").is_file() == cuda


def naming(op: str) -> set[str]:
    """The files of other things that name an op."""
    word = re.compile(rf"\b{op}(_fwd|_bwd)?\b")
    found = {str(path.relative_to(ROOT)) for path in SOURCES if word.search(path.read_text(encoding="utf-8"))}
    return {path for path in found if not its_own(path, op)}


def test_few_other_files_name_an_op() -> None:
    others = naming(ALONE)
    assert others == listed()
    assert len(others) <= 5


def test_no_other_file_is_a_list_of_ops() -> None:
    counts = collections.Counter(path for op in OPS for path in naming(op) - GOALS)
    assert {path for path, ops in counts.items() if ops > len(OPS) / 2} <= listed()
