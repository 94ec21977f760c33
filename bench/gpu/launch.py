"""Every kernel that a workload needs, launched once: what `make gpu-prepare` compiles in place of a stage's timing."""

from __future__ import annotations

from fasttx.ops import OPS
from fasttx.ops.registry import Op

from ..kernel_calls import our_calls
from ..op_case import OpCase, Workload
from .item import Context, Line


def launch_case(op: Op, case: OpCase) -> None:
    """Forward and backward of one call, as they are timed."""
    for call in our_calls(op, [case], "triton").values():
        if not isinstance(call, str):
            call(0)


def launch(workload: Workload, context: Context, sizes: tuple[str, ...] = ("check", "full")) -> list[Line]:
    """Forward and backward at each size, as the accuracy check and the timing call them; no line comes of it."""
    for size in sizes:
        launch_case(OPS[workload.op], workload.build(context.device, size, 0))
    return []
