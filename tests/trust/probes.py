"""Ops for tests of the check at first use: twice a number, by kernels for the CPU of which each has another fault."""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from typing import Any

import torch
from torch import Tensor

from fasttx.ops.cases import Draw
from fasttx.ops.registry import OPS, Direction, Impl, Op

LAUNCHED: list[str] = []
"""The kernels that ran in this process."""
_broken = False


class OnCpu(Impl):
    """Runs wherever it is asked for."""

    def why_not(self, *tensors: Tensor) -> str | None:
        return None


def right(out: Tensor, x: Tensor) -> None:
    LAUNCHED.append("right")
    if _broken:
        raise RuntimeError("the context is broken")
    out.copy_(2 * x)


def wrong(out: Tensor, x: Tensor) -> None:
    out.copy_(2.1 * x)


def unwritten(out: Tensor, x: Tensor) -> None:
    out[:-1].copy_(2 * x[:-1])


def crashes(out: Tensor, x: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(out: Tensor, x: Tensor) -> None:
    time.sleep(10_000)


def raises(out: Tensor, x: Tensor) -> None:
    raise ValueError("no such instruction\non this device")


def prints(out: Tensor, x: Tensor) -> None:
    os.write(1, b'{"row": "a lie"}\n')
    print("{not json")
    right(out, x)


def poisons(out: Tensor, x: Tensor) -> None:
    global _broken
    _broken = True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def exhausts(out: Tensor, x: Tensor) -> None:
    raise torch.OutOfMemoryError("tried to allocate 2 GiB\nof 1 GiB")


def exhausts_driver(out: Tensor, x: Tensor) -> None:
    raise RuntimeError("Triton Error [CUDA]: out of memory")


def lacks_disk(out: Tensor, x: Tensor) -> None:
    raise OSError(28, "No space left on device", "/home/me/.triton")


def lacks_compiler(out: Tensor, x: Tensor) -> None:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def complains(out: Tensor, x: Tensor) -> None:
    os.write(2, b"line 7: misaligned address\n")
    raise ValueError("no result")


def killed(out: Tensor, x: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = ("right", "wrong", "unwritten", "crashes", "hangs", "raises", "prints", "poisons", "exhausts")
FAULTS += ("exhausts_driver", "killed", "lacks_disk", "lacks_compiler", "complains")


def _double(x: Tensor) -> Tensor:
    return 2 * x


def name_of(*kernels: str) -> str:
    """The op whose row these kernels are: the first is "cuda", the second "triton"."""
    return f"probe_{'_'.join(kernels)}"


def add(*kernels: str) -> Op:
    """Defines that op, once a process."""
    name = name_of(*kernels)

    def cases(draw: Draw) -> Any:
        yield "check", (draw.randn(4, 8),)

    module: Any = types.ModuleType(f"fasttx.ops.{name}.cases")
    module.cases = cases
    sys.modules[module.__name__] = module
    impls = tuple(
        OnCpu(backend, f"trust.probes:{kernel}", "", lambda *x: None, auto_on=("cpu",))
        for backend, kernel in zip(("cuda", "triton"), kernels)
    )
    forward = Direction(
        schema="(Tensor x, str backend) -> Tensor out",
        check=lambda x: None,
        fake=torch.empty_like,
        torch=_double,
        reference=lambda x: 2 * x.double(),
        keys=("x",),
        cost=lambda x: (float(x.numel()), 0.0),
    )
    Op(name, forward, None, impls)
    return OPS.pop(name)


PROBES = {op.name: op for kernel in FAULTS for op in (add(kernel), add(kernel, "right"))}
"""Not in the table of ops, of which other tests read every row; who uses them puts them there."""
