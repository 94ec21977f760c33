"""A wrong kernel gets no time, a spill is seen, a failing workload does not end the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench.accuracy
import bench.kernels
from bench.accuracy import check
from bench.compiler_report import compiled_kernels, describe
from bench.kernels import run
from bench.workloads import select, softmax
from fasttx.ops import OPS

CPU = torch.device("cpu")


def test_wrong_result_has_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    op = OPS["softmax"]
    monkeypatch.setattr(bench.kernels, "check", lambda *_: {"fwd": (1.0, 0.5), "bwd": (0.0, 0.5)})
    monkeypatch.setattr(bench.kernels, "select", lambda _: [softmax("softmax-sample", 4, 10)])
    rows, _ = run(CPU, tmp_path / "k.csv", backend="torch", rehearsal=True)
    assert [row.status for row in rows] == ["wrong", "not timed: the other direction is wrong"]
    assert all(row.median_ms == "" for row in rows)
    assert op.name == rows[0].workload.split("-")[0]


def test_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """check() compares with float64: an op whose result is off by a little is not accepted."""
    op = OPS["softmax"]
    workload = softmax("softmax-sample", 4, 10, torch.float32)
    found, allowed = check(workload, op, CPU, "tiny", "torch")["fwd"]
    assert found <= allowed < 1e-4
    right = bench.accuracy.call_op
    monkeypatch.setattr(bench.accuracy, "call_op", lambda *a: tuple(x * 1.0001 for x in right(*a)))
    for found, allowed in check(workload, op, CPU, "tiny", "torch").values():
        assert found > allowed


def test_a_workload_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = SimpleNamespace(name="broken", op="no such op", dropout=False)
    monkeypatch.setattr(bench.kernels, "select", lambda _: [broken, softmax("softmax-sample", 4, 10)])
    rows, left = run(CPU, tmp_path / "k.csv", backend="torch", rehearsal=True)
    assert rows[0].status.startswith("KeyError") and not left
    assert any(row.workload == "softmax-sample" and row.status == "ok" for row in rows)
    assert (tmp_path / "k.csv").read_text(encoding="utf-8").count("\n") == len(rows) + 1


def test_deadline(tmp_path: Path) -> None:
    rows, left = run(CPU, tmp_path / "k.csv", only="softmax", rehearsal=True, deadline=0.0)
    assert not rows and left == [w.name for w in select("softmax")]


def test_description_of_a_compiled_kernel() -> None:
    kernel = SimpleNamespace(
        metadata=SimpleNamespace(name="attention_fwd_kernel", shared=1024, num_warps=4),
        n_regs=100,
        n_spills=8,
        asm={"ptx": "wgmma.mma_async.sync.aligned.m64n64k16"},
    )
    found = describe(kernel, "key")
    assert found.wgmma and found.spills == 8 and found.shared_bytes == 1024
    if not torch.cuda.is_available():
        assert compiled_kernels() == []
