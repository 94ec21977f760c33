"""fasttx.functional.linear_cross_entropy and LinearCrossEntropyLoss, beside torch 2.13's or what it consists of."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import fasttx.nn as fasttx_nn
from fasttx.functional import _linear_cross_entropy
from fasttx.nn.losses import _AsTorch213
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from fasttx.ops.registry import LAUNCHES

fasttx_fn = fasttx_nn.functional.linear_cross_entropy
older = _linear_cross_entropy._as_torch_2_13
torch_fn: Callable[..., Tensor] = getattr(torch_functional, "linear_cross_entropy", older)
needs_torch_2_13 = pytest.mark.skipif(torch_fn is older, reason="torch 2.13 is what has linear_cross_entropy")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
BACKENDS = ("auto", "torch", "triton")


@pytest.fixture(autouse=True)
def _clear() -> None:
    LAUNCHES.clear()
    torch._dynamo.reset()


def given(device: torch.device, dtype: torch.dtype = torch.float32, n_rows: int = 7) -> tuple[Tensor, ...]:
    """(input, linear_weight, linear_bias, target), of 5 features and 9 classes; some targets are ignored."""
    target = torch.randint(9, (n_rows,))
    target[1::3] = -100
    x, w, b = torch.randn(n_rows, 5), torch.randn(9, 5), torch.randn(9)
    return (*(t.to(device, dtype) for t in (x, w, b)), target.to(device))


def gradients(fn: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any):
    leaves = [None if z is None else z.detach().requires_grad_() for z in (x, w, b)]
    loss = fn(*leaves[:2], t, linear_bias=leaves[2], **options)
    scale = torch.arange(1, loss.numel() + 1, device=x.device).view(loss.shape).to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, [z for z in leaves if z is not None], scale)


def same(fn: Callable[..., Tensor], peer: Callable[..., Tensor], *args: Any, **options: Any) -> None:
    tol = TOLERANCE[args[0].dtype]
    for found, expected in zip(gradients(fn, *args, **options), gradients(peer, *args, **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=tol, atol=tol * 8, equal_nan=True)


@needs_torch_2_13
@pytest.mark.parametrize("fn", [fasttx_fn, older], ids=["fasttx", "older"])
def test_signature_is_that_of_torch(fn: Callable[..., Tensor]) -> None:
    actual, expected = (inspect.signature(f).parameters for f in (fn, torch_fn))
    assert [(p.name, p.default, p.kind) for p in actual.values()] == [
        (p.name, p.default, p.kind) for p in expected.values()
    ]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_options(reduction: str, dtype: torch.dtype, name: str, device: torch.device) -> None:
    x, w, b, t = given(device, dtype)
    weight = torch.rand(9, device=device).to(dtype)
    with backend(name):
        same(fasttx_fn, torch_fn, x, w, b, t, reduction=reduction)
        same(fasttx_fn, torch_fn, x, w, None, t, reduction=reduction, weight=weight, label_smoothing=0.1)
        same(fasttx_fn, torch_fn, x, w, b, t.clamp(0), reduction=reduction, ignore_index=0, label_smoothing=-0.5)
    expected = 3 if name != "auto" or device.type == "cuda" else 0
    assert sum(LAUNCHES.values()) == 2 * expected


def test_on_a_cpu_the_logits_are_kept_while_they_are_few(monkeypatch, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a rule for CPUs")
    x, w, b, t = given(device)
    n_kept = int((t != -100).sum())
    for limit, launches in ((n_kept * 9 * 4, 0), (n_kept * 9 * 4 - 1, 2)):
        LAUNCHES.clear()
        monkeypatch.setattr(_linear_cross_entropy, "KEPT_ON_CPU", limit)
        for reduction in ("none", "mean"):
            LAUNCHES.clear()
            same(fasttx_fn, torch_fn, x, w, b, t, reduction=reduction)
            assert sum(LAUNCHES.values()) == launches
    monkeypatch.setattr(_linear_cross_entropy, "KEPT_ON_CPU", n_kept * 9 * 4)
    x[t == -100] = float("nan")  # of which torch's function makes a NaN gradient of the weight
    assert all(bool(found.isfinite().all()) for found in gradients(fasttx_fn, x, w, b, t))
    LAUNCHES.clear()
    fasttx_fn(x, w, t)  # nothing to keep them for
    assert dict(LAUNCHES) == {("linear_cross_entropy_fwd", "torch"): 1}


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_labelled(name: str, device: torch.device) -> None:
    x, w, b, t = given(device)
    with backend(name):
        for reduction in ("none", "mean", "sum"):
            same(fasttx_fn, torch_fn, x, w, b, torch.full_like(t, -100), reduction=reduction)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_no_gradient_for_what_is_frozen(frozen: int, name: str, device: torch.device, monkeypatch) -> None:
    real, asked = _linear_cross_entropy._bwd, []
    monkeypatch.setattr(_linear_cross_entropy, "_bwd", lambda *args: asked.append(args[8:11]) or real(*args))
    x, w, b, t = given(device)
    leaves = [z.requires_grad_(i != frozen) for i, z in enumerate((x, w, b))]
    with backend(name):
        fasttx_fn(x, w, t, linear_bias=b).backward()
    assert asked == ([tuple(i != frozen for i in range(3))] if LAUNCHES else [])
    expected = gradients(torch_fn, x, w, b, t)[1:]
    for i, leaf in enumerate(leaves):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, expected[i])


@pytest.mark.parametrize("name", BACKENDS)
def test_autocast(name: str, device: torch.device) -> None:
    x, w, b, t = given(device)
    weight = torch.rand(9, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16), backend(name):
        for input in (x, x.bfloat16()):
            found = gradients(fasttx_fn, input, w, b, t, weight=weight)
            expected = gradients(torch_fn, input, w, b, t, weight=weight)
            assert found[0].dtype == torch.float32
            for y, z in zip(found, expected, strict=True):
                torch.testing.assert_close(y, z, rtol=3e-2, atol=2e-2)


@pytest.mark.parametrize("name", BACKENDS)
def test_double_backward(name: str, device: torch.device) -> None:
    x, w, b, t = given(device)
    weight = torch.rand(9, device=device)

    def penalty(fn: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [z.detach().to(dtype).requires_grad_() for z in (x, w, b)]
        loss = fn(leaves[0].sin(), leaves[1], t, linear_bias=leaves[2], weight=weight.to(dtype), reduction="none")
        grads = torch.autograd.grad(loss.square().sum(), leaves, create_graph=True)
        sum(g.square().sum() for g in grads).backward()
        return [z.grad for z in leaves]

    with backend(name):
        found = penalty(fasttx_fn, torch.float32)
    for y, z in zip(found, penalty(torch_fn, torch.float64), strict=True):
        torch.testing.assert_close(y.double(), z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler: str, name: str, device: torch.device) -> None:
    x, w, b, t = given(device)
    compiled = torch.compile(
        lambda x, w, t, linear_bias: fasttx_fn(x * 1.0, w, t, linear_bias=linear_bias, label_smoothing=0.1),
        fullgraph=True,
        backend=compiler,
    )
    with backend(name):
        found = gradients(compiled, x, w, b, t)
    for y, z in zip(found, gradients(torch_fn, x, w, b, t, label_smoothing=0.1), strict=True):
        torch.testing.assert_close(y, z)
    assert sum(LAUNCHES.values()) == 2


class Tagged(Tensor):
    """A subclass that keeps its class, as torch's functions do by default."""


def _forward_ad(fn: Callable[..., Tensor], x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(fn(torch.autograd.forward_ad.make_dual(x, x), w, t)).tangent


TO_TORCH: dict[str, tuple[str, Callable[..., Any]]] = {
    "float64": ("floating type", lambda f, x, w, t: f(x.double(), w.double(), t)),
    "one row": ("two dims", lambda f, x, w, t: f(x[0], w, t[0])),
    "k dims": ("two dims", lambda f, x, w, t: f(x, w.reshape(3, 3, 5), (t % 3)[:, None].expand(-1, 3))),
    "probabilities": ("not int64", lambda f, x, w, t: f(x, w, torch.softmax(x @ w.T, 1))),
    "uint8": ("not int64", lambda f, x, w, t: f(x, w, t.clamp(0).byte())),
    "grad": ("torch.func", lambda f, x, w, t: torch.func.grad(lambda z: f(z, w, t))(x)),
    "forward AD": ("torch.func", _forward_ad),
    "subclass": ("subclass", lambda f, x, w, t: f(x.as_subclass(Tagged), w, t)),
}


@pytest.mark.parametrize("case", TO_TORCH)
def test_what_the_operators_do_not_cover_goes_to_torch_or_is_refused(case: str, device: torch.device) -> None:
    reason, call = TO_TORCH[case]
    x, w, _, t = given(device)
    expected = call(torch_fn, x, w, t)
    for name in ("auto", "torch"):
        with backend(name):
            found = call(fasttx_fn, x, w, t)
        torch.testing.assert_close(found, expected)
        assert type(found) is type(expected)
    for name in ("triton", "cuda"):
        with backend(name), pytest.raises(BackendError, match=f"linear_cross_entropy: backend '{name}'.*{reason}"):
            call(fasttx_fn, x, w, t)
    assert not LAUNCHES
    if case != "subclass":
        torch.testing.assert_close(call(older, x, w, t), expected)


def _wrong_calls() -> dict[str, tuple[tuple, dict]]:
    x, w, t = torch.randn(4, 5), torch.randn(9, 5), torch.tensor([0, 1, 2, 3])
    return {
        "input dims": ((x[None], w, t), {}),
        "weight dims": ((x, w[0], t), {}),
        "features": ((x[:, :4], w, t), {}),
        "bias size": ((x, w, t), {"linear_bias": torch.ones(4)}),
        "bias dtype": ((x, w, t), {"linear_bias": torch.ones(9).half()}),
        "unbatched": ((x[0], w.reshape(3, 3, 5), t), {}),
        "batch": ((x, w, t[:3]), {}),
        "int32": ((x, w, t.int()), {}),
        "ignored probabilities": ((x, w, torch.rand(4, 9)), {"ignore_index": 2}),
        "weight size": ((x, w, t), {"weight": torch.ones(4)}),
        "weight dtype": ((x, w, t), {"weight": torch.ones(9).half()}),
        "weight's gradient": ((x, w, t), {"weight": torch.ones(9, requires_grad=True)}),
        "smoothing": ((x, w, t), {"label_smoothing": 1.5}),
        "smoothing of another type": ((x, w, t), {"label_smoothing": "0.1"}),
        "fractional ignored index": ((x, w, t), {"ignore_index": 1.5}),
        "reduction": ((x, w, t), {"reduction": "average"}),
        "out of range": ((x, w, t + 7), {}),
        "negative": ((x, w, t - 1), {}),
        "no tensor": ((x, w, [0, 1, 2, 3]), {}),
    }


@pytest.mark.parametrize("name", _wrong_calls())
@pytest.mark.parametrize("requested", ["auto", "triton"])
@pytest.mark.parametrize("grad", [False, True])
def test_errors_are_those_of_torch(grad: bool, requested: str, name: str) -> None:
    args, options = _wrong_calls()[name]
    args = (args[0].requires_grad_(grad), *args[1:])
    with pytest.raises(Exception) as expected:
        torch_fn(*args, **options)
    with pytest.raises(type(expected.value)) as found, backend(requested):
        fasttx_fn(*args, **options)
    assert type(found.value) is type(expected.value)
    if name != "no tensor":
        assert str(found.value) == str(expected.value)
        with pytest.raises(type(expected.value)):
            older(*args, **options)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)], ids=str)
def test_without_elements(shape: tuple[int, int], device: torch.device) -> None:
    x, w = torch.randn(shape, device=device), torch.randn(9, shape[1], device=device)
    t = torch.zeros(shape[0], dtype=torch.int64, device=device)
    for name in BACKENDS:
        with backend(name):
            same(fasttx_fn, torch_fn, x, w, torch.randn(9, device=device), t)


@needs_torch_2_13
def test_options_of_torch_are_taken(device: torch.device) -> None:
    x, w, b, t = given(device)
    options = torch.nn.LinearCrossEntropyOptions()
    with backend("triton"):
        same(lambda *a, **k: fasttx_fn(*a, options=options, **k), torch_fn, x, w, b, t)


def test_inner_function_takes_a_backend(device: torch.device) -> None:
    x, w, b, t = given(device)
    for name, reason in LINEAR_CROSS_ENTROPY.reasons(x, w, t).items():
        if name == "torch":
            continue
        if reason is not None:
            with pytest.raises(BackendError, match=name):
                _linear_cross_entropy._linear_cross_entropy(x, w, t, b, backend=name)
            continue
        LAUNCHES.clear()
        loss = _linear_cross_entropy._linear_cross_entropy(x.requires_grad_(), w, t, b, backend=name)
        with backend("torch"):  # backward runs where forward ran
            loss.backward()
        assert dict(LAUNCHES) == {("linear_cross_entropy_fwd", name): 1, ("linear_cross_entropy_bwd", name): 1}


def test_no_logits_are_saved(device: torch.device) -> None:
    x, w, b, t = given(device)
    saved: list[Tensor] = []
    with backend("triton"), torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s) or s, lambda s: s):
        fasttx_fn(x.requires_grad_(), w, t, linear_bias=b)
    assert max(s.numel() for s in saved) == w.numel() < x.shape[0] * w.shape[0]


MODULES = [{}, {"bias": True, "weight": torch.rand(9)}, {"ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}]


@pytest.mark.parametrize("options", MODULES, ids="-".join)
@pytest.mark.parametrize("which", ["torch", "older"])
def test_module_is_that_of_torch(which: str, options: dict[str, Any], device: torch.device) -> None:
    peer = getattr(torch.nn, "LinearCrossEntropyLoss", _AsTorch213)
    torch_module = peer(5, 9, **options).to(device)
    fasttx_module = fasttx_nn.LinearCrossEntropyLoss(5, 9, **options).to(device)
    assert isinstance(fasttx_module, peer) and repr(fasttx_module) == repr(torch_module)
    if which == "older":
        fasttx_module = _AsTorch213(5, 9, **options).to(device)
        fasttx_module.forward = lambda x, t: fasttx_nn.LinearCrossEntropyLoss.forward(fasttx_module, x, t)  # type: ignore[arg-type]
        assert fasttx_module.extra_repr() == torch_module.extra_repr()
    assert fasttx_module.state_dict().keys() == torch_module.state_dict().keys()
    fasttx_module.load_state_dict(torch_module.state_dict())
    x, _, _, t = given(device)
    copies = (
        (fasttx_module,)
        if which == "older"
        else (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module)))
    )
    with backend("triton"):
        for module in copies:
            found, expected = module(x, t.clamp(0)), torch_module(x, t.clamp(0))
            torch.testing.assert_close(found, expected)
            parameters = [
                torch.autograd.grad(y, list(m.parameters())) for y, m in ((found, module), (expected, torch_module))
            ]
            torch.testing.assert_close(*parameters)
    assert LAUNCHES["linear_cross_entropy_bwd", "triton"] == len(copies)


def test_module_of_k_dimensions(device: torch.device) -> None:
    fasttx_module = fasttx_nn.LinearCrossEntropyLoss(5, 3, out_features=(2,), bias=True).to(device)
    x, t = torch.randn(4, 5, device=device), torch.randint(3, (4, 2), device=device)
    expected = older(x, fasttx_module.linear.weight.view(3, 2, 5), t, linear_bias=fasttx_module.linear.bias.view(3, 2))
    torch.testing.assert_close(fasttx_module(x, t), expected)


@pytest.mark.parametrize("wrong", [{"weight": torch.ones(4)}, {"label_smoothing": 1.5}], ids=str)
def test_module_of_older_torch_refuses_as_that_of_torch_does(wrong: dict[str, Any]) -> None:
    for cls in (fasttx_nn.LinearCrossEntropyLoss, _AsTorch213):
        with pytest.raises(RuntimeError, match=next(iter(wrong))):
            cls(5, 9, **wrong)
