"""Rows of bench.kernels beside ours and its peers': another backend of ours, and a device copy of as many bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bench.kernels
from bench import workloads
from bench.kernel_calls import copy_call
from bench.kernels import Row, failed, run
from bench.op_case import Workload
from fasttx.ops.cuda import launch as cuda_launch
from fasttx.ops.kl_div.op import KL_DIV
from fasttx.ops.softmax import cuda as softmax_cuda

CPU = torch.device("cpu")


def measured(monkeypatch: pytest.MonkeyPatch, out: Path, workload: Workload, beside: tuple[str, ...] = ()) -> list[Row]:
    monkeypatch.setattr(bench.kernels, "select", lambda _: [workload])
    rows, _ = run(CPU, out / "k.csv", backend="torch", rehearsal=True, quick=True, beside=beside)
    return rows


@pytest.fixture
def emulator(device: torch.device) -> None:
    if cuda_launch.why_not(CPU, None) is not None:
        pytest.skip("no kernels in CUDA C++ run on a CPU here: a GPU is tested, or there is no g++")


def test_another_backend_in_the_same_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator: None) -> None:
    rows = measured(monkeypatch, tmp_path, workloads.softmax("s", 4, 20, torch.float32), beside=("cuda",))
    for direction in ("fwd", "bwd"):
        found = {r.peer: r for r in rows if r.direction == direction}
        cuda = found["fasttx[cuda]"]
        assert cuda.status == "ok" and cuda.inputs == "cold" and float(cuda.median_ms) > 0.0
        assert float(cuda.error) <= float(cuda.allowed)
        assert cuda.ratio == float(cuda.median_ms) / float(found["fasttx[torch]"].median_ms)


def test_a_wrong_backend_beside_has_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator: None) -> None:
    launch = softmax_cuda.launch

    def off(name: str, **members: Any) -> None:
        launch(name, **members)
        if name == "softmax_bwd":
            members["dx"].mul_(1.01)

    monkeypatch.setattr(softmax_cuda, "launch", off)
    rows = measured(monkeypatch, tmp_path, workloads.softmax("s", 4, 20, torch.float32), beside=("cuda",))
    found = {r.direction: r for r in rows if r.peer == "fasttx[cuda]"}
    assert {d: r.status for d, r in found.items()} == {
        "fwd": "not timed: the other direction is wrong",
        "bwd": "wrong",
    }
    assert all(r.median_ms == "" for r in found.values()) and any(map(failed, rows))
    assert {r.status for r in rows if r.peer == "fasttx[torch]"} == {"ok"}


def test_a_backend_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without = tuple(impl for impl in KL_DIV.impls if impl.backend != "cuda")
    monkeypatch.setitem(vars(KL_DIV), "impls", without)
    rows = measured(monkeypatch, tmp_path, workloads.kl_div("k", 5, 20, torch.float32), beside=("cuda",))
    (cuda,) = (r for r in rows if r.peer == "fasttx[cuda]")
    assert cuda.status.startswith("unavailable: ") and "kl_div" in cuda.status and cuda.median_ms == ""
    assert not any(map(failed, rows))


def test_a_device_copy_where_memory_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is said to move what the op must move at least, and has no flop."""
    rows = measured(monkeypatch, tmp_path, workloads.softmax("s", 4, 20, torch.float32))
    for direction, tensors in (("fwd", 2), ("bwd", 3)):
        (copy,) = (r for r in rows if r.peer == "device copy" and r.direction == direction)
        (fasttx_row,) = (r for r in rows if r.peer == "fasttx[torch]" and r.direction == direction)
        assert copy.status == "ok" and copy.tflops == "" and float(copy.median_ms) > 0.0
        moved = float(copy.GBps) * float(copy.median_ms) * 1e6
        assert moved == pytest.approx(float(fasttx_row.GBps) * float(fasttx_row.median_ms) * 1e6)
        assert moved >= tensors * 2 * 20 * 4
    rows = measured(monkeypatch, tmp_path, workloads.attention("a", 1, 16, 1, 16, torch.float32))
    assert "fasttx[torch]" in {r.peer for r in rows} and "device copy" not in {r.peer for r in rows}


def test_what_is_copied() -> None:
    """Half of the bytes are read and half are written, each slot with tensors of its own."""
    call = copy_call(2001.0, CPU, 2)
    outs = [call(slot) for slot in (0, 1)]
    assert all(isinstance(out, Tensor) and out.dtype == torch.uint8 and out.numel() == 1000 for out in outs)
    assert outs[0].data_ptr() != outs[1].data_ptr() and not torch.equal(*outs)  # type: ignore[attr-defined,call-overload]
