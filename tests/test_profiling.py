"""Every op has its name in a profile, forward and backward, and within it the backend that ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fasttx
from fasttx.functional._softmax import softmax
from fasttx.ops import OPS
from fasttx.ops.cases import case
from fasttx.ops.dispatch import as_tuple


def profiled(call: Any) -> Any:
    """What `call` returns, and the names in its profile, each with the names around it."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        result = call()
    around: dict[str, set[str]] = {}
    for event in found.events():
        inside = around.setdefault(event.name, set())
        parent = event.cpu_parent
        while parent is not None:
            inside.add(parent.name)
            parent = parent.cpu_parent
    return result, around


@pytest.mark.parametrize("name", OPS)
def test_every_op_by_name(name: str, device: torch.device) -> None:
    op, args = OPS[name], case(OPS[name], "check", device, torch.float32)
    fwd = getattr(torch.ops.fasttx, f"{name}_fwd").default
    outputs, names = profiled(lambda: fwd(*args, "torch"))
    assert f"fasttx::{name}_fwd" in names[f"fasttx::{name}_fwd[torch]"]
    if op.bwd is not None:
        bwd = getattr(torch.ops.fasttx, f"{name}_bwd").default
        outs = as_tuple(outputs)
        gradient = op.backward_arguments(args, outs, torch.ones_like(outs[0]))
        _, names = profiled(lambda: bwd(*gradient, "torch"))
        assert f"fasttx::{name}_bwd" in names[f"fasttx::{name}_bwd[torch]"]


def test_the_backend_that_ran(device: torch.device) -> None:
    """Autograd's own thread is profiled too; without elements no kernel is launched, whatever was asked for."""
    x = torch.randn(2, 9, device=device, requires_grad=True)
    with fasttx.backend("triton"):
        _, names = profiled(lambda: softmax(x, -1).sum().backward())
        _, empty = profiled(lambda: softmax(x[:0], -1))
    assert {"fasttx::softmax_fwd[triton]", "fasttx::softmax_bwd[triton]"} <= names.keys()
    assert "fasttx::softmax_fwd[torch]" in empty and "fasttx::softmax_fwd[triton]" not in empty


def test_no_range_without_a_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    record = torch.profiler.record_function

    def counted(name: str) -> Any:
        made.append(name)
        return record(name)

    monkeypatch.setattr(torch.profiler, "record_function", counted)
    call = [torch.ones(1, 3), None, None, 1.0, 0.0, False, "torch"]
    torch.ops.fasttx.softmax_fwd.default(*call)
    assert made == []
    profiled(lambda: torch.ops.fasttx.softmax_fwd.default(*call))
    assert made == ["fasttx::softmax_fwd[torch]"]
