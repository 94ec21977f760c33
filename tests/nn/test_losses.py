"""What holds for every loss: torch's signature, errors and precision, and what goes to torch's own function."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from nn.losses_beside_torch import BCE, CROSS_ENTROPY, PAIRS, gradients, launched, same, tokens
from torch import Tensor

from fasttx.functional import _binary_cross_entropy, _cross_entropy
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.registry import LAUNCHES


@pytest.fixture(autouse=True)
def _clear() -> None:
    LAUNCHES.clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", PAIRS)
def test_signature_is_that_of_torch(name: str) -> None:
    actual, expected = (inspect.signature(f).parameters for f in PAIRS[name])
    assert [(p.name, p.default, p.kind) for p in actual.values()] == [
        (p.name, p.default, p.kind) for p in expected.values()
    ]


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 2), (2, 5, 0)], ids=str)
def test_empty_batches(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.randn(shape, device=device)
    t = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device=device)
    with backend("triton"):
        for reduction in ("none", "mean", "sum"):
            same(*CROSS_ENTROPY, x, t, reduction=reduction)
            same(*CROSS_ENTROPY, x, x.clone(), reduction=reduction)
            same(*BCE, x, x.clone(), reduction=reduction)


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_legacy_reductions(size_average: bool | None, reduce: bool | None, device: torch.device) -> None:
    x, t = tokens(device, 4)
    with backend("triton"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        same(*CROSS_ENTROPY, x, t, size_average=size_average, reduce=reduce)
        same(*BCE, x, torch.rand_like(x), size_average=size_average, reduce=reduce)
    legacy = [w for w in seen if "size_average and reduce args" in str(w.message)]
    assert len(legacy) == (0 if size_average is None and reduce is None else 4)


def _wrong_calls() -> dict[str, tuple[str, tuple, dict]]:
    x, t = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    return {
        "reduction": ("cross_entropy", (x, t), {"reduction": "average"}),
        "batch": ("cross_entropy", (x, t[:3]), {}),
        "target dimensions": ("cross_entropy", (x[:, :, None], t), {}),
        "int32 target": ("cross_entropy", (x, t.int()), {}),
        "weight size": ("cross_entropy", (x, t, torch.ones(4)), {}),
        "weight dtype": ("cross_entropy", (x, t, torch.ones(5).half()), {}),
        "smoothing": ("cross_entropy", (x, t), {"label_smoothing": 1.5}),
        "smoothing of another type": ("cross_entropy", (x, t), {"label_smoothing": "0.1"}),
        "no ignored index": ("cross_entropy", (x, t), {"ignore_index": None}),
        "fractional ignored index": ("cross_entropy", (x, t), {"ignore_index": 1.5}),
        "integer probabilities": ("cross_entropy", (x, torch.ones(4, 5).long()), {}),
        "ignored probabilities": ("cross_entropy", (x, torch.rand(4, 5)), {"ignore_index": 2}),
        "out of range": ("cross_entropy", (x, t + 2), {}),
        "negative": ("cross_entropy", (x, t - 1), {}),
        "no tensor": ("cross_entropy", (x, [0, 1, 2, 3]), {}),
        "bce size": ("bce", (x, torch.rand(4, 4)), {}),
        "bce weight": ("bce", (x, torch.rand(4, 5), torch.rand(4)), {}),
        "bce reduction": ("bce", (x, torch.rand(4, 5)), {"reduction": "average"}),
    }


@pytest.mark.parametrize("name", _wrong_calls())
@pytest.mark.parametrize("requested", ["auto", "triton"])
def test_errors_are_those_of_torch(requested: str, name: str) -> None:
    which, args, options = _wrong_calls()[name]
    fasttx_fn, torch_fn = PAIRS[which]
    with pytest.raises(Exception) as expected:
        torch_fn(*args, **options)
    with pytest.raises(type(expected.value)) as found, backend(requested):
        fasttx_fn(*args, **options)
    assert type(found.value) is type(expected.value)
    if name != "no tensor":
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_reads_half_logits_and_returns_float32(dtype: torch.dtype, device: torch.device) -> None:
    x, t = tokens(device, 6, classes=7, dtype=dtype)
    weight, y = torch.rand(7, device=device), torch.rand(6, 7, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16), backend("triton"):
        for fasttx_fn, torch_fn, args in (
            (*CROSS_ENTROPY, (t,)),
            (*CROSS_ENTROPY, (t, weight)),
            (*CROSS_ENTROPY, (y,)),
            (*BCE, (y, weight)),
        ):
            loss, dx = gradients(fasttx_fn, x, *args)
            expected, expected_dx = gradients(torch_fn, x, *args)
            assert loss.dtype == expected.dtype == torch.float32 and dx.dtype == dtype
            torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(dx, expected_dx, rtol=2e-2, atol=1e-3)
    assert launched("cross_entropy") == 6 and launched("binary_cross_entropy") == 2


@pytest.mark.parametrize("name", PAIRS)
def test_double_backward(name: str, device: torch.device) -> None:
    """Gradient penalty: second derivatives are those of torch in float64."""
    fasttx_fn, torch_fn = PAIRS[name]
    x, t = tokens(device, 6)
    args = (t, torch.rand(5, device=device)) if name == "cross_entropy" else (torch.rand_like(x),)

    def penalty(fn: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        z = x.detach().to(dtype).requires_grad_()
        cast = [a.to(dtype) if a.is_floating_point() else a for a in args]
        loss = fn(z.sin(), *cast, reduction="none")
        (dz,) = torch.autograd.grad(loss.exp().sum(), z, create_graph=True)
        dz.square().sum().backward()
        return z.grad

    with backend("triton"):
        found = penalty(fasttx_fn, torch.float32)
        op = "binary_cross_entropy" if name == "bce" else name
        assert LAUNCHES[f"{op}_fwd", "triton"] == 1
    torch.testing.assert_close(found.double(), penalty(torch_fn, torch.float64), rtol=1e-4, atol=1e-4)


class Tagged(Tensor):
    """A subclass that keeps its class, as torch's functions do by default."""


def _forward_ad(fn: Callable[..., Tensor], x: Tensor, *args: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        out = fn(torch.autograd.forward_ad.make_dual(x, x), *args)
        return torch.autograd.forward_ad.unpack_dual(out).tangent


TO_TORCH: dict[str, tuple[str, str, Callable[[Callable[..., Tensor], Tensor, Tensor], Any]]] = {
    "ce float64": ("cross_entropy", "floating type", lambda f, x, t: f(x.double(), t)),
    "ce one row": ("cross_entropy", "one dim", lambda f, x, t: f(x[0], t[0])),
    "ce uint8": ("cross_entropy", "neither int64", lambda f, x, t: f(x, t.clamp(min=0).byte())),
    "ce grad": ("cross_entropy", "torch.func", lambda f, x, t: torch.func.grad(lambda z: f(z, t))(x)),
    "ce jvp": ("cross_entropy", "torch.func", lambda f, x, t: torch.func.jvp(lambda z: f(z, t), (x,), (x,))),
    "ce vmap": (
        "cross_entropy",
        "torch.func",
        lambda f, x, t: torch.func.vmap(lambda z, y: f(z[None], y[None], reduction="sum"))(x, t),
    ),
    "ce forward AD": ("cross_entropy", "torch.func", _forward_ad),
    "ce subclass": ("cross_entropy", "subclass", lambda f, x, t: f(x.as_subclass(Tagged), t)),
    "ce target's gradient": (
        "cross_entropy",
        "target requires",
        lambda f, x, t: torch.autograd.grad(f(x, q := torch.softmax(x, 1).requires_grad_()), q),
    ),
    "ce mixed probabilities": ("cross_entropy", "floating type", lambda f, x, t: f(x, torch.softmax(x.double(), 1))),
    "bce float64": ("bce", "floating type", lambda f, x, t: f(x.double(), x.double())),
    "bce mixed": ("bce", "another dtype", lambda f, x, t: f(x, x.bfloat16())),
    "bce target's gradient": (
        "bce",
        "requires a gradient",
        lambda f, x, t: torch.autograd.grad(f(x, q := x.clone().requires_grad_()), q),
    ),
    "bce grad": ("bce", "torch.func", lambda f, x, t: torch.func.grad(lambda z: f(z, x.abs()))(x)),
}


@pytest.mark.parametrize("case", TO_TORCH)
def test_what_the_operators_do_not_cover_goes_to_torch_or_is_refused(case: str, device: torch.device) -> None:
    which, reason, call = TO_TORCH[case]
    fasttx_fn, torch_fn = PAIRS[which]
    x, t = tokens(device, 6)
    expected = call(torch_fn, x, t)
    for name in ("auto", "torch"):
        with backend(name):
            found = call(fasttx_fn, x, t)
        torch.testing.assert_close(found, expected)
        assert type(found) is type(expected)
    for name in ("triton", "cuda"):
        with (
            backend(name),
            pytest.raises(BackendError, match=f"{fasttx_fn.__name__}: backend '{name}' cannot.*{reason}"),
        ):
            call(fasttx_fn, x, t)
    assert launched("") == 0


def test_without_data_any_backend_counts_as_run(device: torch.device) -> None:
    x, t = tokens(device, 6)
    with backend("triton"):
        assert _cross_entropy.cross_entropy(x.to("meta"), t.to("meta")).is_meta
        assert _cross_entropy.cross_entropy(x[:0].double(), t[:0]).dtype == torch.float64
        empty = x[:0].double()
        assert _binary_cross_entropy.binary_cross_entropy_with_logits(empty, empty).dtype == torch.float64


def test_torch_words_its_own_refusal_of_a_nested_tensor(device: torch.device) -> None:
    x, _ = tokens(device, 6)
    nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.strided)
    for name in ("auto", "triton"):
        with backend(name), pytest.raises(RuntimeError) as found:
            _binary_cross_entropy.binary_cross_entropy_with_logits(nested, nested)
        assert not isinstance(found.value, BackendError)


def test_default_device_does_not_hide_the_kernels(device: torch.device) -> None:
    """torch.set_default_device works by a function mode, which must not look like an override."""
    x, t = tokens(device, 6)
    torch.set_default_device(device)
    try:
        with backend("triton"):
            _cross_entropy.cross_entropy(x, t)
    finally:
        torch.set_default_device(None)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == 1


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler: str, device: torch.device) -> None:
    x, t = tokens(device, 6, classes=300)
    weight, y = torch.rand(300, device=device), torch.rand(6, 300, device=device)

    def both(x: Tensor, t: Tensor) -> Tensor:
        smoothed = _cross_entropy.cross_entropy(x * 1.0, t, weight, label_smoothing=0.1)
        return smoothed + _binary_cross_entropy.binary_cross_entropy_with_logits(x, y, pos_weight=weight)

    with backend("triton"):
        compiled = torch.compile(both, fullgraph=True, backend=compiler)
        loss, dx = gradients(compiled, x, t)
        assert {k: n for k, n in LAUNCHES.items()} == {
            (f"{op}_{half}", "triton"): 1 for op in ("cross_entropy", "binary_cross_entropy") for half in ("fwd", "bwd")
        }
    w, _y = weight, y
    expected, expected_dx = gradients(
        lambda x, t: (
            torch_functional.cross_entropy(x, t, w, label_smoothing=0.1)
            + torch_functional.binary_cross_entropy_with_logits(x, _y, pos_weight=w)
        ),
        x,
        t,
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(dx, expected_dx)
