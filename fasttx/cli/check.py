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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from ..ops import OPS, verdicts
from ..ops.availability import compiles_when_loaded
from ..ops.backends import BACKENDS
from ..ops.registry import Op
from .judge import Call, calls, judge

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


def _judge(result: Result, op: Op, wanted: Sequence[Call]) -> None:
    """Calls the operator and fills in status, error and time."""
    began = time.perf_counter()
    found = judge(op, result.direction, result.backend, wanted)
    result.seconds = time.perf_counter() - began
    result.error, result.allowed, result.unit = found.error, found.allowed, found.unit
    result.status = "ok" if found.share <= 1.0 else "wrong"
    result.detail = "" if result.status == "ok" else f"in the case {found.case}"


def _attempts(device: torch.device) -> Iterator[tuple[Result, Op, Sequence[Call]]]:
    """Every (op, direction, dtype, backend), with its calls; on a CPU without the large ones, which take minutes."""
    for op in OPS.values():
        for short, dtype in DTYPES.items():
            for name, wanted in calls(op, device, dtype, with_large=device.type != "cpu").items():
                tensors = op.directions[name].key_tensors(wanted[0].arguments)
                reasons = dict.fromkeys(BACKENDS, "not implemented") | {"torch": None}
                # what failed its check runs, too: this is the report of it
                reasons |= {impl.backend: impl.why_not(*tensors) for impl in op.impls}
                for backend in BACKENDS:
                    why = reasons[backend]
                    status = "unavailable" if why else ""
                    yield Result(op.name, name, short, str(device), backend, status, why or ""), op, wanted


def run(device: torch.device) -> Iterator[dict[str, Any]]:
    """First ``{"total": n}``, then each :class:`Result` as a dict."""
    attempts = list(_attempts(device))
    yield {"total": len(attempts)}
    for result, op, wanted in attempts:
        if not result.status:
            try:
                _judge(result, op, wanted)
            except Exception as problem:  # whatever a kernel or a compiler raises is this row's result
                result.status, result.detail = "error", _first_line(problem)
        yield dataclasses.asdict(result)


def check_row(name: str, device: torch.device, tell: Callable[[dict[str, str]], None]) -> dict[str, str]:
    """What became of a row "op/backend/dtype", forward and backward: its name, a status and a detail."""
    op_name, backend, short = name.split("/")
    op = OPS[op_name]

    def found(status: str, detail: str = "") -> dict[str, str]:
        return {"row": name, "status": status, "detail": detail}

    try:
        wanted = calls(op, device, getattr(torch, short))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as problem:
        return found("unchecked", f"PyTorch's own operators raised {_first_line(problem)}")
    tell({"row": name})  # what goes wrong from here on is the kernel's fault
    # a launch that waits for the driver's compiler is none that hangs; the kernel itself is waited for afterwards
    launching = {"phase": "compiling" if compiles_when_loaded(backend, device) else "running"}
    phases = {"before": lambda: tell(launching), "launched": lambda: tell({"phase": "running"})}
    for direction, those in wanted.items():
        try:
            judged = judge(op, direction, backend, those, **phases)
        except Exception as problem:
            if _lacks_memory(problem):
                return found("unchecked", f"out of memory: {_first_line(problem)}")
            if _lacks_what_compiles(problem):
                return found("unchecked", f"could not be compiled here: {_first_line(problem)}")
            return found("crashed", f"{direction} raised {_first_line(problem)}")
        if not judged.share <= 1.0:
            unit = f" {judged.unit}" if judged.unit else ""
            bound = f"off by {judged.error:.1e}{unit}, allowed is {judged.allowed:.1e}{unit}"
            return found("wrong", f"{direction} is {bound} (case {judged.case})")
    return found("ok")


def _lacks_memory(problem: Exception) -> bool:
    """Whether it says so: PyTorch's allocators, cuBLAS, and the driver when it loads code, each in its own words."""
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(word in str(problem) for word in words)


def _lacks_what_compiles(problem: Exception) -> bool:
    """Whether Triton could not work on this machine: a full disk, a folder that it may not write, no C compiler."""
    if isinstance(problem, (OSError, subprocess.SubprocessError)):
        return True
    return isinstance(problem, RuntimeError) and "C compiler" in str(problem)


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
        found = check_row(name, device, tell)
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
