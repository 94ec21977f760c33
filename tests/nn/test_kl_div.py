"""kl_div and KLDivLoss against torch's, on the kernel, and where torch's own function runs."""

from __future__ import annotations

import inspect
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import fasttx.nn as nn
from fasttx import BackendError, backend
from fasttx.functional import kl_div
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
REDUCTIONS = ["none", "mean", "sum", "batchmean"]
quiet = pytest.mark.filterwarnings("ignore:.*'mean' divides:UserWarning")


def pair(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, target = (torch.randn(shape).log_softmax(-1).to(device, dtype) for _ in range(2))
    return x, target.exp()


@quiet
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_like_torch(device, dtype, reduction, log_target) -> None:
    x, target = pair(device, 4, 3, 9, dtype=dtype)
    target = target.log() if log_target else target
    LAUNCHES.clear()
    found = []
    for module, name in ((nn.KLDivLoss, "triton"), (torch.nn.KLDivLoss, "auto")):
        leaf = x.clone().requires_grad_()
        with backend(name):
            loss = module(reduction=reduction, log_target=log_target)(leaf, target)
            loss.float().sum().backward()
        found.append((loss.detach(), leaf.grad))
    assert LAUNCHES["kl_div_fwd", "triton"] == LAUNCHES["kl_div_bwd", "triton"] == 1
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@quiet
def test_backward_keeps_the_target_alone(device) -> None:
    x, target = pair(device, 4, 9)
    saved: list[Tensor] = []
    with backend("triton"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        kl_div((x.requires_grad_() * 1.0), target, reduction="sum").backward()
    assert [t.data_ptr() for t in saved] == [target.data_ptr()]


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_the_mean_is_warned_of_as_by_torch(device, name) -> None:
    x, target = pair(device, 4, 9)
    with backend(name), pytest.warns(UserWarning, match="'mean' divides"):
        kl_div(x, target)
    with backend(name), warnings.catch_warnings():
        warnings.simplefilter("error")
        kl_div(x, target, reduction="batchmean")


@quiet
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_of_mixed_inputs(device, dtypes, autocast) -> None:
    x, target = pair(device, 4, 9)
    x, target = x.to(dtypes[0]).requires_grad_(), target.to(dtypes[1])
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        with backend("triton"):
            actual = kl_div(x, target, reduction="sum")
        expected = torch_functional.kl_div(x, target, reduction="sum")
    assert actual.dtype == expected.dtype == torch.float32
    exact = torch_functional.kl_div(x.float(), target.float(), reduction="sum")  # outside autocast torch rounds t log t
    torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-5)
    actual.backward()
    assert x.grad is not None and x.grad.dtype == dtypes[0]


@quiet
@pytest.mark.parametrize("log_target", [False, True])
def test_double_backward_is_that_of_torch(device, log_target) -> None:
    def penalty(fn, dtype):
        z = x.detach().to(dtype).requires_grad_()
        loss = fn(z.sin(), target.to(dtype), reduction="none", log_target=log_target)
        (dz,) = torch.autograd.grad(loss.exp().sum(), z, create_graph=True)
        dz.square().sum().backward()
        return z.grad

    x, target = pair(device, 4, 5)
    with backend("triton"):
        found = penalty(kl_div, torch.float32)
    torch.testing.assert_close(found.double(), penalty(torch_functional.kl_div, torch.float64), rtol=1e-4, atol=1e-4)


def _with_gradient(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


UNCOVERED = {
    "target's gradient": (lambda x, t: (x, _with_gradient(t)), {}, "target requires a gradient"),
    "broadcast": (lambda x, t: (x, t[:1]), {}, "differ in shape"),
    "float64": (lambda x, t: (x.double(), t.double()), {}, "float32, float16"),
    "legacy": (lambda x, t: (x, t), {"size_average": False}, "size_average or reduce is given"),
}


@pytest.mark.filterwarnings("ignore:.*size_average and reduce args:UserWarning")
@pytest.mark.parametrize("made, options, reason", UNCOVERED.values(), ids=UNCOVERED)
def test_what_goes_to_the_function_of_torch(device, monkeypatch, made, options, reason) -> None:
    """By itself; a forced kernel refuses it. Never by the short cut of a CPU, which is taken out here."""
    monkeypatch.setattr("fasttx.functional._kl_div.composed_on_cpu", lambda *_: False)
    x, target = made(*pair(device, 4, 9))
    options = {"reduction": "sum"} | options
    LAUNCHES.clear()
    torch.testing.assert_close(kl_div(x, target, **options), torch_functional.kl_div(x, target, **options))
    assert not LAUNCHES
    with backend("triton"), pytest.raises(BackendError, match=reason):
        kl_div(x, target, **options)


def test_wrong_calls_get_the_errors_of_torch(device) -> None:
    x, target = pair(device, 4, 9)
    for name in ("auto", "triton"):
        with backend(name):
            with pytest.raises(ValueError, match="is not a valid value for reduction"):
                kl_div(x, target, reduction="batch")
            with pytest.raises(RuntimeError, match="must match the size"):
                kl_div(x, target[:, :4], reduction="sum")
            with pytest.raises(TypeError):
                kl_div(x, [1.0], reduction="sum")


def test_empty_and_scalar(device) -> None:
    with backend("triton"):
        for shape, reductions in (((0, 3), ["none", "sum", "batchmean"]), ((), ["none", "sum", "batchmean"])):
            x, target = torch.zeros(shape, device=device), torch.full(shape, 0.5, device=device)
            for reduction in reductions:
                if (shape, reduction) == ((), "batchmean"):
                    with pytest.raises(BackendError, match="without a dim"):
                        kl_div(x, target, reduction=reduction)
                    continue
                found, wanted = (f(x, target, reduction=reduction) for f in (kl_div, torch_functional.kl_div))
                torch.testing.assert_close(found, wanted, equal_nan=True)


def test_compiles_to_one_graph(device) -> None:
    x, target = pair(device, 4, 9)

    def step(x: Tensor) -> Tensor:
        return kl_div(x.log_softmax(-1), target, reduction="batchmean")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = []
    for f in (step, compiled):
        leaf = x.clone().requires_grad_()
        with backend("triton"):
            loss = f(leaf)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_signature_and_module_are_those_of_torch() -> None:
    actual, expected = (inspect.signature(f).parameters for f in (kl_div, torch_functional.kl_div))
    assert [(p.name, p.default, p.kind) for p in actual.values()] == [
        (p.name, p.default, p.kind) for p in expected.values()
    ]
    module = pickle.loads(pickle.dumps(nn.KLDivLoss(reduction="sum", log_target=True)))
    assert isinstance(module, torch.nn.KLDivLoss) and (module.reduction, module.log_target) == ("sum", True)
    assert nn.functional.kl_div is kl_div
