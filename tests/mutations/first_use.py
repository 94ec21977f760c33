"""Which faults of the Triton kernels the check at first use notices: `python tests/mutations/run.py --first-use`.

The check of each op that a file of kernels belongs to runs in Triton's interpreter, in float32 and bfloat16, as
`fasttx.patch` has it run on a GPU. A fault is noticed where a row is wrong, crashes or hangs.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from mutation import Mutation

DTYPES = ("float32", "bfloat16")
LIMIT = 300
"""Seconds for the rows of a fault: it may also make a kernel run for ever."""
UNNOTICED = {
    "kernels/logit_chunks.py: _add_product(dweight_sum, d.t(), x_rows, first == 0)": (
        "a line of Python, the same on every machine, that is wrong from 32 MiB of logits on: too much for a check"
    ),
    "kernels/add_layer_norm_quantize.py: .to(out_ptr.dtype.element_ty)": "it leaves out a rounding to bfloat16",
    "kernels/bias_gelu_quantize.py: .to(x_ptr.dtype.element_ty)": "it leaves out a rounding to bfloat16",
    "kernels/gelu.py: p = p * a + 1.4013885e-06": (
        "it changes the last digits of a coefficient of erf, by less than one rounding"
    ),
}
"""Names of the faults that the check does not notice, and why: none is of an index, a bound, a mask or a scale.
docs/trust.md has the same list."""


def _imports(path: Path) -> set[str]:
    """The files of kernels that a file of kernels imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


@functools.cache
def needed(kernels: Path, name: str) -> frozenset[str]:
    """A file of kernels and all that it needs, without ".py"."""
    return frozenset({name}).union(*(needed(kernels, each) for each in _imports(kernels / f"{name}.py") - {name}))


def ops_of(root: Path, file: str) -> list[str]:
    """The ops that run code of a file of kernels, the op of its own name first."""
    name, found = Path(file).stem, []
    for path in sorted((root / "fasttx" / "ops").glob("*/op.py")):
        launched = re.findall(r"fasttx\.kernels\.(\w+):", path.read_text())
        if any(name in needed(root / "kernels", each) for each in launched):
            found.append(path.parent.name)
    assert found, f"{file}: no op launches it"
    return sorted(found, key=lambda op: not name.startswith(op))


def check(tree: Path, ops: list[str]) -> tuple[bool, str]:
    """Whether the check of these ops in a tree notices anything, and what."""
    rows = [f"{op}/triton/{dtype}" for op in ops for dtype in DTYPES]
    environment = {**os.environ, "PYTHONPATH": str(tree), "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = "1"
    command = [sys.executable, "-W", "ignore", "-m", "fasttx.cli.check", "cpu", *rows]
    child = subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, complaints = _outputs(child)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return True, f"hung: ran for more than {LIMIT} s"
    told = [json.loads(line) for line in out.splitlines()]
    found = [line for line in told if "status" in line]
    if any(line["status"] == "unchecked" for line in found) or not any("device" in line for line in told):
        raise RuntimeError(f"no verdict: {told[-1:]} {complaints[-500:]}")
    failed = next((line for line in found if line["status"] != "ok"), None)
    if failed is not None:
        return True, f"{failed['row']} {failed['status']}: {failed['detail']}"
    if len(found) < len(rows):
        return True, f"{rows[len(found)]} crashed: {complaints.strip().splitlines()[-1:]}"
    return False, f"{len(rows)} rows are ok"


def _outputs(child: subprocess.Popen[bytes]) -> tuple[str, str]:
    """What it wrote. Its input stays open meanwhile: the check ends with the process that started it."""
    assert child.stdin is not None
    held, child.stdin = child.stdin, None
    try:
        out, complaints = child.communicate(timeout=LIMIT)
    finally:
        held.close()
    return out.decode(), complaints.decode()


def noticed(tree: Path, mutation: Mutation) -> tuple[bool, str]:
    """Whether the check notices a fault, and what it says; the tree is as before afterwards."""
    with mutation.made_in(tree):
        return check(tree, ops_of(tree, mutation.file))
