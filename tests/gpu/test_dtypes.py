"""Every op at its workloads' rows and lengths, in every dtype, on the device: the accuracy rule of docs/numerics.md."""

from __future__ import annotations

import pytest
import torch

from bench.accuracy import check
from bench.gpu.sweep import cases
from bench.workloads import WORKLOADS, Workload
from fasttx.ops import OPS


@pytest.mark.parametrize("workload", cases(), ids=lambda w: w.name)
def test_accuracy(workload: Workload, device: torch.device) -> None:
    size = "check" if device.type == "cuda" else "tiny"
    for direction, (found, allowed) in check(workload, OPS[workload.op], device, size, "triton").items():
        assert found <= allowed, (
            f"{workload.name} {direction}: error {found:.3e} against float64, allowed {allowed:.3e}"
        )


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if "fp" not in w.name][:8], ids=lambda w: w.name)
def test_forward_is_reproducible(workload: Workload, device: torch.device) -> None:
    size = "check" if device.type == "cuda" else "tiny"
    case = workload.build(device, size, 0)
    operator = getattr(torch.ops.fasttx, f"{workload.op}_fwd").default
    first, second = (operator(*case.args, "triton") for _ in range(2))
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (first, second)), strict=True):
        assert torch.equal(a, b)
