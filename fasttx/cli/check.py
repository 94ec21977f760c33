"""Runs every op on one device with every backend that can run there, and compares with float64.

`doctor` starts this file as a process of its own (``python -m fasttx.cli.check cpu``): a kernel that crashes, or leaves
a CUDA context broken, then costs one row of the report and not the report.  A line of output is one JSON object: first
``{"total": n}``, then a :class:`Result` each.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops import OPS
from ..ops.backends import BACKENDS
from ..ops.cases import case
from ..ops.dispatch import as_tuple
from ..ops.registry import Direction
from ..testing import compare, poisoned_outputs

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Result:
    """What became of one operator in one dtype on one backend.

    Attributes:
        status: "ok", "wrong" (error above allowed), "error" (it raised) or "unavailable"; `detail` says what or why.
        error, allowed: largest error against float64, and fasttx.testing's bound, of the row nearest to its bound.
        unit: what they count: "" a number of the output, "ulp" units of the last place of an int8 output.
        seconds: host time of the call, the first compilation included.
    """

    op: str
    direction: str
    dtype: str
    device: str
    backend: str
    status: str
    detail: str = ""
    error: float = 0.0
    allowed: float = 0.0
    unit: str = ""
    seconds: float = 0.0


def _judge(result: Result, direction: Direction, arguments: Sequence[Any]) -> None:
    """Calls the operator and fills in status, error and time."""
    began = time.perf_counter()
    operator = getattr(torch.ops.fasttx, f"{result.op}_{result.direction}").default
    with poisoned_outputs():
        outputs = as_tuple(operator(*arguments, result.backend))
    if outputs[0].is_cuda:
        torch.cuda.synchronize()
    result.seconds = time.perf_counter() - began
    worst = -1.0
    composed, reference = as_tuple(direction.torch(*arguments)), as_tuple(direction.reference(*arguments))
    for out, same, ref in zip(outputs, composed, reference, strict=True):
        compared = compare(out, same, ref, by=direction.compared_by)
        if compared.share > worst:
            worst, result.error, result.allowed = compared.share, compared.error, compared.allowed
            result.unit = "" if out.dtype.is_floating_point else "ulp"
    result.status = "ok" if worst <= 1.0 else "wrong"


def _attempts(device: torch.device) -> Iterator[tuple[Result, Direction, Sequence[Any]]]:
    """Every (op, direction, dtype, backend), with its arguments."""
    for op in OPS.values():
        for short, dtype in DTYPES.items():
            forward = case(op, "check", device, dtype)
            outputs = as_tuple(op.fwd.torch(*forward))
            for name, direction in op.directions.items():
                arguments: Sequence[Any] = forward
                if name == "bwd":
                    arguments = op.backward_arguments(forward, outputs, _gradient(outputs[0]))
                reasons = op.reasons(*direction.key_tensors(arguments))
                for backend in BACKENDS:
                    why = reasons[backend]
                    status = "unavailable" if why else ""
                    yield Result(op.name, name, short, str(device), backend, status, why or ""), direction, arguments


def _gradient(out: Tensor) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


def run(device: torch.device) -> Iterator[dict[str, Any]]:
    """First ``{"total": n}``, then each :class:`Result` as a dict."""
    attempts = list(_attempts(device))
    yield {"total": len(attempts)}
    for result, direction, arguments in attempts:
        if not result.status:
            try:
                _judge(result, direction, arguments)
            except Exception as problem:  # whatever a kernel or a compiler raises is this row's result
                lines = str(problem).strip().splitlines()
                result.status, result.detail = "error", f"{type(problem).__name__}: {lines[0] if lines else ''}"
        yield dataclasses.asdict(result)


def main() -> None:
    device = torch.device(sys.argv[1])
    if os.environ.get("TRITON_INTERPRET") == "1":
        from ..triton_interpreter import repair

        repair()
    for line in run(device):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
