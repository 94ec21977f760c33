"""fasttx.functional's cross_entropy, binary_cross_entropy_with_logits and their modules, beside torch's own."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fasttx.nn as fasttx_nn
from fasttx.functional import losses
from fasttx.ops.registry import LAUNCHES, backend

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
PAIRS = {
    "cross_entropy": (losses.cross_entropy, torch_functional.cross_entropy),
    "bce": (losses.binary_cross_entropy_with_logits, torch_functional.binary_cross_entropy_with_logits),
}


@pytest.fixture(autouse=True)
def _clear() -> None:
    LAUNCHES.clear()
    torch._dynamo.reset()


def launched(name: str) -> int:
    return sum(n for (op, _), n in LAUNCHES.items() if op.startswith(name))


def gradients(fn: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    x = input.detach().requires_grad_()
    loss = fn(x, *args, **options)
    scale = torch.arange(1, loss.numel() + 1, device=x.device).view(loss.shape).to(loss.dtype)
    (dx,) = torch.autograd.grad(loss, x, scale)
    return loss.detach(), dx


def same(fn: Callable[..., Tensor], peer: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> None:
    """Loss and gradient have torch's shape, dtype and, to a rounding of that dtype, values."""
    (loss, dx), (expected, expected_dx) = (
        gradients(fn, input, *args, **options),
        gradients(peer, input, *args, **options),
    )
    tol = TOLERANCE[input.dtype]
    torch.testing.assert_close(loss, expected, rtol=tol, atol=tol, equal_nan=True)
    torch.testing.assert_close(dx, expected_dx, rtol=tol, atol=tol * max(1.0, float(loss.numel())), equal_nan=True)


def tokens(
    device: torch.device, *shape: int, classes: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits (N, C, d1, ...) as a model gives them, the classes innermost in memory, and targets, some ignored."""
    target = torch.randint(classes, shape)
    target.view(-1)[1::5] = -100
    logits = torch.randn(*shape, classes).movedim(-1, 1)
    return logits.to(device, dtype), target.to(device)


# -------------------------------------------------------------------------------------------------------- semantics


@pytest.mark.parametrize("name", PAIRS)
def test_signature_is_torchs(name: str) -> None:
    ours, torchs = (inspect.signature(f).parameters for f in PAIRS[name])
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in torchs.values()
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_of_k_dimensions(
    reduction: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x, t = tokens(device, *shape, dtype=dtype)
    weight = torch.rand(5).to(device, dtype)
    with backend("triton"):
        for w, smoothing in ((None, 0.0), (weight, 0.1)):
            same(*PAIRS["cross_entropy"], x, t, w, reduction=reduction, label_smoothing=smoothing)
            same(*PAIRS["cross_entropy"], x.contiguous(), torch.softmax(x.contiguous(), 1), w, reduction=reduction)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == LAUNCHES["cross_entropy_bwd", "triton"] == 4


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), classes=st.integers(1, 9), probs=st.booleans(),
    weighted=st.booleans(), smoothing=st.sampled_from([-0.1, 0.0, 0.3, 1.0]), ignore=st.sampled_from([-100, -1, 0, 1,
    2]), reduction=st.sampled_from(["none", "mean", "sum"]), permuted=st.booleans(),
)  # fmt: skip
def test_cross_entropy_of_any_options(
    device, sizes, classes, probs, weighted, smoothing, ignore, reduction, permuted
) -> None:
    x, t = tokens(device, *sizes, classes=classes)
    t[t == -100] = ignore if ignore < classes else 0
    x = x if permuted else x.contiguous()
    weight = torch.rand(classes).to(device) if weighted else None
    target = torch.rand_like(x) if probs else t
    with backend("triton"):
        same(
            *PAIRS["cross_entropy"], x, target, weight, ignore_index=min(ignore, -1) if probs else ignore,
            reduction=reduction, label_smoothing=smoothing,
        )  # fmt: skip


def test_row_of_logits_without_a_batch(device: torch.device) -> None:
    x = torch.randn(5, device=device)
    with backend("triton"):
        for target in (torch.tensor(2, device=device), torch.tensor([2], device=device), torch.rand(5, device=device)):
            for reduction in ("none", "mean", "sum"):
                ours, torchs = (f(x, target, reduction=reduction) for f in PAIRS["cross_entropy"])
                torch.testing.assert_close(ours, torchs)
            if target.shape != (1,):  # there torch's own backward fails
                same(*PAIRS["cross_entropy"], x, target)


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 2), (2, 5, 0)], ids=str)
def test_empty_batches(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.randn(shape, device=device)
    t = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device=device)
    with backend("triton"):
        for reduction in ("none", "mean", "sum"):
            same(*PAIRS["cross_entropy"], x, t, reduction=reduction)
            same(*PAIRS["cross_entropy"], x, x.clone(), reduction=reduction)
            same(*PAIRS["bce"], x, x.clone(), reduction=reduction)


def test_all_targets_ignored(device: torch.device) -> None:
    x, t = torch.randn(4, 5, device=device), torch.full((4,), -100, device=device)
    with backend("triton"):
        for smoothing in (0.0, 0.1):
            for reduction in ("none", "mean", "sum"):
                same(*PAIRS["cross_entropy"], x, t, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_cross_entropy(dtype: torch.dtype, device: torch.device) -> None:
    x, y = torch.randn(3, 5).to(device, dtype), torch.rand(3, 5).to(device, dtype)
    weights = [None, torch.rand(5).to(device, dtype), torch.rand(3, 1).to(device, dtype)]
    with backend("triton"):
        for weight, pos_weight, reduction in itertools.product(weights, weights, ("none", "mean", "sum")):
            same(*PAIRS["bce"], x, y, weight, reduction=reduction, pos_weight=pos_weight)
    assert LAUNCHES["binary_cross_entropy_bwd", "triton"] == 27


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
def test_legacy_reductions(size_average: bool | None, reduce: bool | None, device: torch.device) -> None:
    x, t = tokens(device, 4)
    with backend("triton"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        same(*PAIRS["cross_entropy"], x, t, size_average=size_average, reduce=reduce)
        same(*PAIRS["bce"], x, torch.rand_like(x), size_average=size_average, reduce=reduce)
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
def test_errors_are_torchs(requested: str, name: str) -> None:
    which, args, options = _wrong_calls()[name]
    ours, torchs = PAIRS[which]
    with pytest.raises(Exception) as expected:
        torchs(*args, **options)
    with pytest.raises(type(expected.value)) as found, backend(requested):
        ours(*args, **options)
    assert type(found.value) is type(expected.value)
    if name != "no tensor":
        assert str(found.value) == str(expected.value)


# ------------------------------------------------------------------------------------------ precision and autograd


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_reads_half_logits_and_returns_float32(dtype: torch.dtype, device: torch.device) -> None:
    x, t = tokens(device, 6, classes=7, dtype=dtype)
    weight, y = torch.rand(7, device=device), torch.rand(6, 7, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16), backend("triton"):
        for ours, torchs, args in (
            (*PAIRS["cross_entropy"], (t,)),
            (*PAIRS["cross_entropy"], (t, weight)),
            (*PAIRS["cross_entropy"], (y,)),
            (*PAIRS["bce"], (y, weight)),
        ):
            loss, dx = gradients(ours, x, *args)
            expected, expected_dx = gradients(torchs, x, *args)
            assert loss.dtype == expected.dtype == torch.float32 and dx.dtype == dtype
            torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(dx, expected_dx, rtol=2e-2, atol=1e-3)
    assert launched("cross_entropy") == 6 and launched("binary_cross_entropy") == 2


def test_no_copy_of_the_logits_is_saved(device: torch.device) -> None:
    x, t = tokens(device, 4, classes=300, dtype=torch.bfloat16)
    x = x.requires_grad_()
    saved: list[Tensor] = []
    with backend("triton"), torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s) or s, lambda s: s):
        losses.cross_entropy(x, t)
    wide = [s for s in saved if s.numel() >= x.numel()]
    assert [s.data_ptr() for s in wide] == [x.data_ptr()]


def test_logits_overwritten_before_backward_are_noticed(device: torch.device) -> None:
    x, t = tokens(device, 4)
    x = x.clone().requires_grad_()
    y = x * 1.0
    with backend("triton"):
        loss = losses.cross_entropy(y, t)
        y.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", PAIRS)
def test_double_backward(name: str, device: torch.device) -> None:
    """Gradient penalty: second derivatives are those of torch in float64."""
    ours, torchs = PAIRS[name]
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
        found = penalty(ours, torch.float32)
        op = "binary_cross_entropy" if name == "bce" else name
        assert LAUNCHES[f"{op}_fwd", "triton"] == 1
    torch.testing.assert_close(found.double(), penalty(torchs, torch.float64), rtol=1e-4, atol=1e-4)


def test_transforms_and_odd_tensors_go_to_torch(device: torch.device) -> None:
    x, t = tokens(device, 6)
    ours, torchs = PAIRS["cross_entropy"]

    class Tagged(Tensor):
        pass

    with backend("triton"):
        one = torch.func.grad(lambda z: ours(z, t))(x)
        torch.testing.assert_close(one, torch.func.grad(lambda z: torchs(z, t))(x))
        rows = torch.func.vmap(lambda z, y: ours(z[None], y[None], reduction="sum"))(x, t)
        torch.testing.assert_close(rows, torchs(x, t, reduction="none"))
        _, tangent = torch.func.jvp(lambda z: ours(z, t), (x,), (x,))
        torch.testing.assert_close(tangent, torch.func.jvp(lambda z: torchs(z, t), (x,), (x,))[1])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x)
            assert torch.autograd.forward_ad.unpack_dual(ours(dual, t)).tangent is not None
        assert ours(x.double(), t).dtype == torch.float64
        assert isinstance(ours(x.as_subclass(Tagged), t), Tagged)
        assert ours(x.to("meta"), t.to("meta")).is_meta
        q = torch.rand_like(x).requires_grad_()
        (dq,) = torch.autograd.grad(ours(x, q), q)
        torch.testing.assert_close(dq, torch.autograd.grad(torchs(x, q), q)[0])
        y = torch.rand_like(x).requires_grad_()
        assert torch.autograd.grad(losses.binary_cross_entropy_with_logits(x, y), y)[0].shape == y.shape
        nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.strided)
        with pytest.raises(RuntimeError):  # torch has no rule for it either, and says so
            losses.binary_cross_entropy_with_logits(nested, nested)
    assert launched("") == 0


def test_default_device_does_not_hide_the_kernels(device: torch.device) -> None:
    """torch.set_default_device works by a function mode, which must not look like an override."""
    x, t = tokens(device, 6)
    torch.set_default_device(device)
    try:
        with backend("triton"):
            losses.cross_entropy(x, t)
    finally:
        torch.set_default_device(None)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == 1


# --------------------------------------------------------------------------------------------------------- compile


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler: str, device: torch.device) -> None:
    x, t = tokens(device, 6, classes=300)
    weight, y = torch.rand(300, device=device), torch.rand(6, 300, device=device)

    def both(x: Tensor, t: Tensor) -> Tensor:
        smoothed = losses.cross_entropy(x * 1.0, t, weight, label_smoothing=0.1)
        return smoothed + losses.binary_cross_entropy_with_logits(x, y, pos_weight=weight)

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


def test_compiles_over_gathered_rows(device: torch.device) -> None:
    """The number of labelled rows is unknown while tracing."""
    x, t = tokens(device, 10)

    def labelled(x: Tensor, t: Tensor) -> Tensor:
        rows = (t != -100).nonzero().squeeze(1)
        return losses.cross_entropy(x[rows], t[rows])

    with backend("triton"), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        same(torch.compile(labelled, fullgraph=True, backend="aot_eager"), torch_functional.cross_entropy, x, t)
    assert LAUNCHES["cross_entropy_bwd", "triton"] == 1


def test_compiled_transform(device: torch.device) -> None:
    x, t = tokens(device, 6)
    with backend("triton"):
        fn = torch.compile(
            lambda x, t: torch.func.grad(lambda z: losses.cross_entropy(z, t))(x), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(fn(x, t), gradients(torch_functional.cross_entropy, x, t)[1])


def test_large_input_on_a_cpu_takes_the_composition(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a rule for CPUs")
    elements, classes = losses.WORTH_IT_ON_CPU
    for size, expected in (
        (elements, {("cross_entropy_fwd", "torch"): 1, ("cross_entropy_bwd", "torch"): 1}),
        (elements - 8 * classes, {}),
    ):
        LAUNCHES.clear()
        x, t = torch.randn(size // (8 * classes), 8 * classes), torch.zeros(size // (8 * classes), dtype=torch.int64)
        same(*PAIRS["cross_entropy"], x, t)
        assert dict(LAUNCHES) == expected


# --------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": torch.rand(5)}, {"ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}],
    ids="-".join,
)
def test_cross_entropy_loss_is_torchs_module(options: dict[str, Any], device: torch.device) -> None:
    ours, torchs = fasttx_nn.CrossEntropyLoss(**options).to(device), torch.nn.CrossEntropyLoss(**options).to(device)
    assert isinstance(ours, torch.nn.CrossEntropyLoss) and repr(ours) == repr(torchs)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    x, t = tokens(device, 7)
    t = t.clamp(min=0)
    with backend("triton"):
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            same(module, torchs, x, t)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == 3


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": torch.rand(5), "pos_weight": torch.rand(5)}, {"reduction": "none"}],
    ids="-".join,
)
def test_bce_with_logits_loss_is_torchs_module(options: dict[str, Any], device: torch.device) -> None:
    ours, torchs = fasttx_nn.BCEWithLogitsLoss(**options).to(device), torch.nn.BCEWithLogitsLoss(**options).to(device)
    assert isinstance(ours, torch.nn.BCEWithLogitsLoss) and repr(ours) == repr(torchs)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    x = torch.randn(3, 5, device=device)
    with backend("triton"):
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            same(module, torchs, x, torch.rand_like(x))
    assert LAUNCHES["binary_cross_entropy_fwd", "triton"] == 3
