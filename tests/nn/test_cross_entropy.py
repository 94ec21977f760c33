"""fasttx.functional.cross_entropy and CrossEntropyLoss, beside torch's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from nn.losses_beside_torch import CROSS_ENTROPY, gradients, same, tokens
from torch import Tensor

import fasttx.nn as fasttx_nn
from fasttx.functional import _cross_entropy
from fasttx.ops.backends import backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES


@pytest.fixture(autouse=True)
def _clear() -> None:
    LAUNCHES.clear()
    torch._dynamo.reset()


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
            same(*CROSS_ENTROPY, x, t, w, reduction=reduction, label_smoothing=smoothing)
            same(*CROSS_ENTROPY, x.contiguous(), torch.softmax(x.contiguous(), 1), w, reduction=reduction)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == LAUNCHES["cross_entropy_bwd", "triton"] == 4


def test_cross_entropy_of_any_options(device) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
    @hypothesis.given(
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        classes=st.integers(1, 9),
        probs=st.booleans(),
        weighted=st.booleans(),
        smoothing=st.sampled_from([-0.1, 0.0, 0.3, 1.0]),
        ignore=st.sampled_from([-100, -1, 0, 1, 2]),
        reduction=st.sampled_from(["none", "mean", "sum"]),
        permuted=st.booleans(),
    )
    def holds(sizes, classes, probs, weighted, smoothing, ignore, reduction, permuted) -> None:
        x, t = tokens(device, *sizes, classes=classes)
        t[t == -100] = ignore if ignore < classes else 0
        x = x if permuted else x.contiguous()
        weight = torch.rand(classes).to(device) if weighted else None
        target = torch.rand_like(x) if probs else t
        with backend("triton"):
            same(
                *CROSS_ENTROPY,
                x,
                target,
                weight,
                ignore_index=min(ignore, -1) if probs else ignore,
                reduction=reduction,
                label_smoothing=smoothing,
            )

    holds()


def test_row_of_logits_without_a_batch(device: torch.device) -> None:
    x = torch.randn(5, device=device)
    with backend("auto"):
        for target in (torch.tensor(2, device=device), torch.tensor([2], device=device), torch.rand(5, device=device)):
            for reduction in ("none", "mean", "sum"):
                actual, expected = (f(x, target, reduction=reduction) for f in CROSS_ENTROPY)
                torch.testing.assert_close(actual, expected)
            if target.shape != (1,):  # there torch's own backward fails
                same(*CROSS_ENTROPY, x, target)


def test_all_targets_ignored(device: torch.device) -> None:
    x, t = torch.randn(4, 5, device=device), torch.full((4,), -100, device=device)
    with backend("triton"):
        for smoothing in (0.0, 0.1):
            for reduction in ("none", "mean", "sum"):
                same(*CROSS_ENTROPY, x, t, reduction=reduction, label_smoothing=smoothing)


def test_no_copy_of_the_logits_is_saved(device: torch.device) -> None:
    x, t = tokens(device, 4, classes=300, dtype=torch.bfloat16)
    x = x.requires_grad_()
    saved: list[Tensor] = []
    with backend("triton"), torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s) or s, lambda s: s):
        _cross_entropy.cross_entropy(x, t)
    wide = [s for s in saved if s.numel() >= x.numel()]
    assert [s.data_ptr() for s in wide] == [x.data_ptr()]


def test_logits_overwritten_before_backward_are_noticed(device: torch.device) -> None:
    x, t = tokens(device, 4)
    x = x.clone().requires_grad_()
    y = x * 1.0
    with backend("triton"):
        loss = _cross_entropy.cross_entropy(y, t)
        y.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_compiles_over_gathered_rows(device: torch.device) -> None:
    """The number of labelled rows is unknown while tracing."""
    x, t = tokens(device, 10)

    def labelled(x: Tensor, t: Tensor) -> Tensor:
        rows = (t != -100).nonzero().squeeze(1)
        return _cross_entropy.cross_entropy(x[rows], t[rows])

    with backend("triton"), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        same(torch.compile(labelled, fullgraph=True, backend="aot_eager"), torch_functional.cross_entropy, x, t)
    assert LAUNCHES["cross_entropy_bwd", "triton"] == 1


def test_compiled_transform(device: torch.device) -> None:
    """Traced inside a transform, the call goes to torch's function; under a forced backend it says why it cannot."""
    x, t = tokens(device, 6)
    fn = torch.compile(
        lambda x, t: torch.func.grad(lambda z: _cross_entropy.cross_entropy(z, t))(x),
        fullgraph=True,
        backend="aot_eager",
    )
    with backend("auto"):
        torch.testing.assert_close(fn(x, t), gradients(torch_functional.cross_entropy, x, t)[1])
    with backend("triton"), pytest.raises(torch._dynamo.exc.Unsupported, match="BackendError.*torch.func transform"):
        fn(x, t)


def test_large_input_on_a_cpu_takes_the_composition(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a rule for CPUs")
    elements, classes = _cross_entropy.WORTH_IT_ON_CPU
    for size, expected in (
        (elements, {("cross_entropy_fwd", "torch"): 1, ("cross_entropy_bwd", "torch"): 1}),
        (elements - 8 * classes, {}),
    ):
        LAUNCHES.clear()
        x, t = torch.randn(size // (8 * classes), 8 * classes), torch.zeros(size // (8 * classes), dtype=torch.int64)
        same(*CROSS_ENTROPY, x, t)
        assert dict(LAUNCHES) == expected


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": torch.rand(5)}, {"ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}],
    ids="-".join,
)
def test_cross_entropy_loss_is_a_module_of_torch(options: dict[str, Any], device: torch.device) -> None:
    fasttx_module, torch_module = (
        fasttx_nn.CrossEntropyLoss(**options).to(device),
        torch.nn.CrossEntropyLoss(**options).to(device),
    )
    assert isinstance(fasttx_module, torch.nn.CrossEntropyLoss) and repr(fasttx_module) == repr(torch_module)
    assert fasttx_module.state_dict().keys() == torch_module.state_dict().keys()
    x, t = tokens(device, 7)
    t = t.clamp(min=0)
    with backend("triton"):
        for module in (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
            same(module, torch_module, x, t)
    assert LAUNCHES["cross_entropy_fwd", "triton"] == 3


def test_ignore_index_may_be_a_symbol() -> None:
    """Question answering ignores the index past the last token: an unknown size while a graph is compiled."""

    def both(x: Tensor, t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        beyond = x.shape[1]
        joint = fasttx_nn.functional.linear_cross_entropy(h, w, t, ignore_index=beyond)
        return _cross_entropy.cross_entropy(x, t, ignore_index=beyond) + joint

    with backend("torch"):
        compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
        for classes in (7, 9):
            tensors = torch.randn(5, classes), torch.randint(0, classes + 1, (5,)), torch.randn(5, 4)
            w = torch.randn(classes, 4)
            torch.testing.assert_close(compiled(*tensors, w), both(*tensors, w))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_composition_sums_in_float32_under_autocast(dtype: torch.dtype) -> None:
    """The sum over classes that label smoothing takes with weights overflows in float16 and is rounded in bfloat16."""
    x, target, weight = 50.0 * torch.randn(4, 100), torch.tensor([0, 3, 99, 7]), torch.linspace(1.0, 100.0, 100)
    options: Any = {"weight": weight, "label_smoothing": 0.1, "reduction": "none"}
    with torch.autocast("cpu", dtype=dtype), backend("torch"):
        found = _cross_entropy.cross_entropy(x, target, **options)
    torch.testing.assert_close(found, torch_functional.cross_entropy(x, target, **options))
