"""One answer to "which backend runs": dispatch, the report of a patch, explain and `supported` agree for every op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fasttx.models.report import expected_backend
from fasttx.ops import OPS, cases, dispatch, registry
from fasttx.ops.decisions import recorded
from fasttx.ops.registry import LAUNCHES, Op

GPU = torch.device("cuda", 0)
DTYPE = torch.float16  # which every kernel takes
TABLE = [pytest.param(op, id=name) for name, op in OPS.items()]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Tensors on a GPU that is not there; the set names the backends that it lacks."""
    lacking: set[str] = set()
    monkeypatch.setattr(registry, "cannot_run_on", lambda name, *a: "is not built" if name in lacking else None)
    monkeypatch.setattr(registry, "_kernels", {})
    monkeypatch.setattr(registry, "_warned", set())
    monkeypatch.setattr(dispatch, "resolve", lambda path: lambda *a: None)
    # what dispatch asks: a build for CPUs alone has it not, and one with CUDA would ask a driver
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    with FakeTensorMode():
        yield lacking


def module(op: Op) -> nn.Module:
    """Something to report on, with what tells the width of a row."""
    found = nn.LayerNorm(384, device=GPU, dtype=DTYPE)
    found.head_dim = 32
    return found


def answers(op: Op, requested: str) -> dict[str, str]:
    """Who says that which backend runs a small call."""
    from fasttx.cli import supported

    forward = cases.case(op, "check", GPU, DTYPE)
    called = dispatch.body(op, "fwd", replace(op.fwd, torch=op.fwd.fake))  # nothing computes there
    LAUNCHES.clear()
    with recorded() as decisions:
        called(*forward, requested)
    ((_, launched),) = LAUNCHES
    found = {"dispatch": launched, "explain": decisions[0].choice}
    found["report"] = expected_backend(op.name, requested, module(op))
    if requested == "auto":
        found["supported"] = supported.taken(GPU, DTYPE)[op.name]
        found["has_kernel"] = launched if op.has_kernel(GPU, DTYPE) else "torch"
    return found


@pytest.mark.filterwarnings("ignore:fasttx.* runs as PyTorch's own operators")
@pytest.mark.parametrize("op", TABLE)
def test_every_answer_is_that_of_dispatch(op: Op, gpu: set[str]) -> None:
    pytest.importorskip("typer", reason="typer is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    for impl in (i for i in op.impls if GPU.type in i.auto_on):  # the first, then the next where that cannot run
        assert set(answers(op, "auto").values()) == {impl.backend}
        assert set(answers(op, impl.backend).values()) == {impl.backend}
        gpu.add(impl.backend)
        assert expected_backend(op.name, impl.backend, module(op)).startswith(
            f"{impl.backend}, which cannot run here: is not built"
        )
    assert set(answers(op, "auto").values()) == {"torch"}
    assert set(answers(op, "torch").values()) == {"torch"}


def test_the_report_decides_on_the_width_that_the_module_has(gpu: Any) -> None:
    wide = nn.LayerNorm(100_000, device=GPU)
    assert expected_backend("dropout_add_layer_norm", "auto", wide) == "torch"
    wide.head_dim = 264
    assert expected_backend("attention", "auto", wide) == "torch"
    assert expected_backend("softmax", "auto", wide) == "triton"


def test_a_module_without_weights_or_on_meta_has_no_backend_yet() -> None:
    assert expected_backend("softmax", "auto", nn.GELU()) == "auto"
    assert expected_backend("softmax", "auto", nn.LayerNorm(3, device="meta")) == "auto"
    assert expected_backend("softmax", "auto", nn.LayerNorm(3)) == "torch"
