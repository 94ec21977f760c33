"""A model that is moved after it was patched is checked when it first runs where it is then."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from trust.test_patch import CPU, machine, model

import fasttx
from fasttx.ops import OPS, verdicts
from fasttx.trust import first_use, later

__all__ = ["machine"]
pytestmark = pytest.mark.filterwarnings("ignore:fasttx. kernels failed")


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "_models", [])
    monkeypatch.setattr(verdicts, "at_a_call", [])


def call() -> str:
    """What a forward does first: an op asks which backend computes it."""
    return OPS["cross_entropy"].runs("auto", torch.ones(2, 3))


def test_the_first_call_where_the_model_is_now_checks_it(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    moved = model().to("meta")
    report = fasttx.patch(moved)
    assert machine == [] and report.checks == {} and call() == "cuda"
    assert machine == [], "it is not there yet"
    assert "kernels were not checked: that happens when the model first runs on a GPU" in " ".join(str(report).split())
    moved.to_empty(device="cpu")
    assert call() == "torch", "the very first call knows what failed"
    assert set(report.checks["cpu"]) == set(machine) and "were not checked" not in str(report)
    n = len(machine)
    call()
    assert len(machine) == n


def test_a_model_that_was_checked_when_it_was_patched_is_not_asked_again(machine: list[str]) -> None:
    here = model()
    fasttx.patch(here)
    n = len(machine)
    verdicts.forget()
    first_use._tried.clear()
    call()
    assert len(machine) == n > 0
    assert isinstance(fasttx.quantize(here), object) and len(later._models) == 2, "other ops of the same model"


@pytest.mark.parametrize("reason", ["a graph is being compiled", "a CUDA graph is being captured"])
def test_not_while_a_graph_is_made(reason: str, machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    moved = model().to("meta")
    fasttx.patch(moved)
    moved.to_empty(device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(first_use, "being_recorded", lambda device: reason)
        call()
    assert machine == []
    call()
    assert machine


def test_it_costs_no_time_and_holds_no_model(machine: list[str]) -> None:
    kept = [model().to("meta") for _ in range(3)]
    for each in kept:
        fasttx.patch(each)
    verdicts.known(CPU)
    op, x = OPS["softmax"], torch.ones(2, 3)
    took = []
    for _ in range(200):
        began = time.perf_counter()
        op.choice("auto", x)
        took.append(time.perf_counter() - began)
    assert sorted(took)[100] < 1e-3, "a millisecond a call"
    assert machine == [] and len(later._models) == 3
    del kept, each
    gc.collect()
    assert later._models == []
