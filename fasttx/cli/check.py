"""Runs every op on one device with every backend that can run there, and compares with float64.

This file runs as a process of its own: a kernel that crashes, or leaves a CUDA context broken, then costs one row of a
report and not the report. A line of its output is one JSON object.

- `doctor` starts it with a device (``python -m fasttx.cli.check cpu``) and gets ``{"total": n}``, then a
  :class:`Result` each.
- :mod:`fasttx.trust.first_use` starts it with rows as well (``cuda:0 softmax/triton/bfloat16 ...``) and gets
  ``{"device": "", "key": {...}}`` or why the device cannot be used, then for each row ``{"row": name}``, any number of
  ``{"phase": "compiling"}`` and ``{"phase": "running"}``, and ``{"row": name, "status": ..., "detail": ...}``. The
  process ends at the first row that is not ok: what a kernel has broken is not to be held against the next one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from ..ops import OPS, verdicts
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
                tensors = direction.key_tensors(arguments)
                reasons = dict.fromkeys(BACKENDS, "not implemented") | {"torch": None}
                # what failed its check runs, too: this is the report of it
                reasons |= {impl.backend: impl.why_not(*tensors) for impl in op.impls}
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
                result.status, result.detail = "error", _first_line(problem)
        yield dataclasses.asdict(result)


def check_row(name: str, device: torch.device) -> dict[str, str]:
    """What became of a row "op/backend/dtype", forward and backward: its name, a status and a detail."""
    op_name, backend, short = name.split("/")
    op, dtype = OPS[op_name], getattr(torch, short)
    try:
        forward: Sequence[Any] = case(op, "check", device, dtype)
        outputs = as_tuple(op.fwd.torch(*forward))
        calls = {"fwd": forward}
        if op.bwd is not None:
            calls["bwd"] = op.backward_arguments(forward, outputs, _gradient(outputs[0]))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as problem:
        return {"row": name, "status": "unchecked", "detail": f"PyTorch's own operators raised {_first_line(problem)}"}
    for direction_name, direction in op.directions.items():
        arguments = calls[direction_name]
        result = Result(op_name, direction_name, short, str(device), backend, "")
        try:
            _judge(result, direction, arguments)
        except Exception as problem:
            if _lacks_memory(problem):
                return {"row": name, "status": "unchecked", "detail": f"out of memory: {_first_line(problem)}"}
            return {"row": name, "status": "crashed", "detail": f"{direction_name} raised {_first_line(problem)}"}
        if result.status == "wrong":
            unit = f" {result.unit}" if result.unit else ""
            detail = f"{direction_name} is off by {result.error:.1e}{unit}, allowed is {result.allowed:.1e}{unit}"
            return {"row": name, "status": "wrong", "detail": detail}
    return {"row": name, "status": "ok", "detail": ""}


def _lacks_memory(problem: Exception) -> bool:
    """Whether it says so: PyTorch's allocators, cuBLAS, and the driver when it loads code, each in its own words."""
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(word in str(problem) for word in words)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"


def _why_no_device(device: torch.device) -> str:
    """Why nothing can be computed on a device (another process may hold it for itself), or ""."""
    try:
        return "" if float(torch.ones(1, device=device) + 1) == 2.0 else "it adds 1 and 1 wrongly"
    except Exception as problem:
        return _first_line(problem)


def _report_phases(tell: Callable[[dict[str, str]], None]) -> None:
    """Has Triton say when it compiles: that takes time without any fault of a kernel's."""
    try:
        from triton import knobs
    except ImportError:
        return
    knobs.runtime.jit_cache_hook = lambda *_, **__: tell({"phase": "compiling"})
    knobs.runtime.jit_post_compile_hook = lambda *_, **__: tell({"phase": "running"})


def _end_with(parent: IO[bytes]) -> None:
    """Ends this process when the one that started it has ended: its end of the pipe is closed then."""

    def wait() -> None:
        parent.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def check_rows(device: torch.device, rows: Sequence[str]) -> None:
    """Checks rows in turn, and tells; what kernels print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    _end_with(sys.stdin.buffer)
    _report_phases(tell)
    reason = _why_no_device(device)
    tell({"device": reason} if reason else {"device": "", "key": verdicts.key(device)})
    for name in rows if not reason else ():
        tell({"row": name})
        found = check_row(name, device)
        tell(found)
        if found["status"] != "ok":
            break
    out.flush()
    os._exit(0)  # a broken context can hang in its end


def main() -> None:
    device, rows = torch.device(sys.argv[1]), sys.argv[2:]
    if os.environ.get("TRITON_INTERPRET") == "1":
        from ..triton_interpreter import repair

        repair()
    if rows:
        check_rows(device, rows)
    for line in run(device):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
