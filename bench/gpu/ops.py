"""Every op, forward and backward, in bf16: right, the same bits twice, no spills. Outputs are NaN before a launch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fasttx.ops import OPS

from ..accuracy import Judged, judge
from ..op_case import Workload
from ..workloads import WORKLOADS
from .compiled import in_words, new_kernels, watching
from .item import Context, Item, Line
from .launch import launch

LEADING = "attention-bert-base"
"""Attention's kinds of call, plain, short, packed, with dropout: they come first."""


def chosen() -> list[Workload]:
    """By value: attention's kinds, and of every other op the first workload."""
    first = {w.op: w for w in reversed(WORKLOADS)}
    leading = [w for w in WORKLOADS if w.name.startswith(LEADING)]
    return leading + [w for w in WORKLOADS if first[w.op] is w and w not in leading]


def may_move(workload: Workload, direction: str) -> bool:
    """Whether an op promises less than the same bits: attention's backward adds up dq in any order."""
    return workload.op == "attention" and direction == "bwd"


def line_of(workload: Workload, direction: str, found: Judged) -> Line:
    """What came of one direction."""
    text = f"{direction} error {found.error:.2e} of {found.allowed:.2e} allowed, rms {found.rms:.1e}"
    moves = found.same is False and not may_move(workload, direction)
    if found.same is not None:
        text += ", same bits" if found.same else ", OTHER BITS the second time" if moves else ", order of sums varies"
    figures = {"op": workload.op, "direction": direction, "workload": workload.name, **found._asdict()}
    return {"text": text, "ok": found.good and not moves, **figures}


def run(workload: Workload, context: Context) -> Iterator[Line]:
    if context.dry:
        yield from launch(workload, context, ("check",))
        return
    op = OPS[workload.op]
    with watching() as seen, new_kernels() as kernels:
        found = judge(workload, op, context.device, context.checked, "triton", twice=True)
    case = workload.build(context.device, context.checked, 0)
    dtype = str(case.args[0].dtype).removeprefix("torch.")
    for direction, judged in found.items():
        yield line_of(workload, direction, judged) | {"dtype": dtype, "backend": "triton"}
    spills = sum(kernel.spills > 0 for kernel in kernels)
    text = f"{in_words(kernels) or 'no new kernel'}; {seen.misses} compiled here"
    yield {"text": text, "ok": not spills, "kernels": [k.__dict__ for k in kernels], "misses": seen.misses}
    auto = op.runs("auto", *op.fwd.key_tensors([*case.args, "auto"]))
    yield {"text": f"auto takes {auto}", "ok": auto == "triton" or context.rehearsal, "auto": auto}


def items(context: Context) -> list[Item]:
    return [Item(workload.name, partial(run, workload)) for workload in chosen()]
