"""What the compiler made of the kernels on this device: nothing spilled, Hopper's tensor-core instructions in use."""

from __future__ import annotations

import pytest
import torch

from bench.accuracy import call_op
from bench.compiler_report import Compiled, compiled_kernels
from bench.workloads import WORKLOADS, Workload
from fasttx.ops import OPS

MAY_SPILL = {"attention-d64-s512-fp32"}
"""fp32 products run on the ordinary cores ("ieee"), with tiles that are not tuned for registers."""


def _launch(workload: Workload, device: torch.device) -> list[Compiled]:
    """Runs every direction, and gives the variants that this added."""
    before = set(compiled_kernels())
    op = OPS[workload.op]
    case = workload.build(device, "check" if device.type == "cuda" else "tiny", 0)
    outputs = call_op(op, "fwd", case.args, "triton")
    if op.bwd is not None:
        arguments = op.backward_arguments(case.args, outputs, torch.ones_like(outputs[0]), **case.given)
        call_op(op, "bwd", arguments, "triton")
    return [kernel for kernel in compiled_kernels() if kernel not in before]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_nothing_spills(workload: Workload, device: torch.device) -> None:
    kernels = _launch(workload, device)
    if device.type != "cuda":
        assert not kernels  # the interpreter compiles nothing
    for kernel in kernels:
        assert kernel.spills == 0 or workload.name in MAY_SPILL, kernel


def test_tensor_cores(device: torch.device) -> None:
    workload = next(w for w in WORKLOADS if w.name == "attention-bert-base-s512")
    _launch(workload, device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        kernels = [k for k in compiled_kernels() if k.kernel.startswith("attention") and "delta" not in k.kernel]
        assert kernels
        assert any(k.wgmma for k in kernels), kernels
