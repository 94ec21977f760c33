"""Every op in every dtype: at the rows and lengths of its workloads, and around its block boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from fasttx.ops import OPS
from fasttx.ops.cases import case as small_case
from fasttx.ops.cases import cases as small_cases
from fasttx.ops.registry import Op

from ..accuracy import judge
from ..op_case import BF16, FP16, FP32, OpCase, Workload
from ..workloads import WORKLOADS, around_boundaries, int8_around_boundaries
from .item import Context, Item, Line
from .launch import launch
from .ops import line_of

DTYPES = {"bf16": BF16, "fp16": FP16, "fp32": FP32}
"""By value."""


def cases() -> list[Workload]:
    """The benchmark's workloads, and each op in each dtype around its block boundaries."""
    around = [w for short, dtype in DTYPES.items() for w in around_boundaries(short, dtype)]
    return [*WORKLOADS, *around, *int8_around_boundaries()]


def small_calls() -> list[Workload]:
    """The small calls of the table of ops, with masks, windows, lengths, packed tokens and options, in each dtype."""
    found = []
    for short, dtype in DTYPES.items():
        for op in OPS.values():
            dropout = op.fwd.argument_names().index("dropout_p") if "dropout_p" in op.fwd.argument_names() else None
            for name, arguments in small_cases(op, torch.device("meta"), dtype):
                if arguments[0].numel() == 0:
                    continue  # nothing is launched

                def build(
                    device: torch.device,
                    size: str,
                    seed: int,
                    op: Op = op,
                    name: str = name,
                    dtype: torch.dtype = dtype,
                ) -> OpCase:
                    return OpCase(list(small_case(op, name, device, dtype)), {})

                drawn = dropout is not None and arguments[dropout] > 0.0
                found.append(Workload(f"{op.name}-case-{name}-{short}", op.name, build, drawn))
    return found


def in_order(found: list[Workload]) -> list[Workload]:
    """bf16 first, then fp16, then the rest, each in the order of the list."""
    places = {short: place for place, short in enumerate(DTYPES)}
    return sorted(found, key=lambda w: places.get(w.name.rsplit("-", 1)[-1], 0))


def run(workload: Workload, context: Context) -> Iterator[Line]:
    if context.dry:
        yield from launch(workload, context, ("check",))
        return
    op = OPS[workload.op]
    case = workload.build(context.device, "tiny", 0)
    reason = op.reasons(*op.fwd.key_tensors([*case.args, "triton"])).get("triton")
    if reason is not None:
        yield {"text": f"no kernel: {reason}"}
        return
    dtype = str(case.args[0].dtype).removeprefix("torch.")
    for direction, judged in judge(workload, op, context.device, context.checked, "triton").items():
        yield line_of(workload, direction, judged) | {"dtype": dtype, "backend": "triton"}


def items(context: Context) -> list[Item]:
    found = in_order(cases() + small_calls())
    if context.rehearsal:
        found = list({workload.op: workload for workload in reversed(found)}.values())
    return [Item(workload.name, partial(run, workload)) for workload in found]
