"""softmax, log_softmax, Softmax, LogSoftmax: torch's semantics on every path, and mask, scale and dropout besides."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fasttx.nn as nn
import fasttx.nn.functional as F
from fasttx.functional import _softmax
from fasttx.ops.backends import backend
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

FUNCTIONS = [(F.softmax, torch.nn.functional.softmax), (F.log_softmax, torch.nn.functional.log_softmax)]
IDS = ["softmax", "log_softmax"]
both = pytest.mark.parametrize("fasttx_fn, torch_fn", FUNCTIONS, ids=IDS)
each_backend = pytest.mark.parametrize("name", ["triton", "torch"])
INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def gradients(function, x, *args, **kwargs):
    x = x.detach().clone().requires_grad_()
    out = function(x, *args, **kwargs)
    weight = torch.linspace(-1, 2, max(out.numel(), 1), device=x.device)[: out.numel()].view(out.shape).to(out.dtype)
    out.backward(weight)  # not torch.autograd.grad, which reentrant checkpoints refuse
    return out.detach(), x.grad


@each_backend
@both
def test_gradient_against_float64(device, fasttx_fn, torch_fn, name):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(2, 5, 33, device=device, dtype=dtype)
        with backend(name):
            out, dx = gradients(fasttx_fn, x, -1)
        same, reference = gradients(torch_fn, x, -1), gradients(torch_fn, x.double(), -1)
        assert_as_accurate(out, same[0], reference[0])
        assert_as_accurate(dx, same[1], reference[1], "dx")


@both
def test_the_kernel_runs_for_the_last_dim(device, fasttx_fn, torch_fn):
    x = torch.randn(3, 7, device=device)
    LAUNCHES.clear()
    with backend("triton"):
        gradients(fasttx_fn, x, -1)
        gradients(fasttx_fn, x, 1)
    assert LAUNCHES == {("softmax_fwd", "triton"): 2, ("softmax_bwd", "triton"): 2}


@both
@pytest.mark.parametrize(
    "shape", [(), (1,), (0,), (5,), (3, 0), (0, 3), (2, 3), (2, 3, 4), (2, 1, 3, 2), (2, 1, 1, 2, 1, 3)]
)
def test_every_dim_and_shape(device, fasttx_fn, torch_fn, shape):
    x = torch.randn(shape, device=device)
    with backend("triton" if shape else "auto"):
        for dim in range(-max(len(shape), 1), max(len(shape), 1)):
            out, dx = gradients(fasttx_fn, x, dim)
            expected, expected_dx = gradients(torch_fn, x, dim)
            torch.testing.assert_close(out, expected)
            torch.testing.assert_close(dx, expected_dx)
            assert out.shape == expected.shape
        for dim in (len(shape) + 1, -len(shape) - 2):
            with pytest.raises(IndexError, match="Dimension out of range"):
                fasttx_fn(x, dim)


@both
def test_implicit_dim_warns_at_the_caller_and_chooses_as_torch(fasttx_fn, torch_fn):
    for n_dims in (1, 2, 3, 4):
        x = torch.randn([3] * n_dims)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out, expected = fasttx_fn(x), torch_fn(x)
        torch.testing.assert_close(out, expected)
        assert [(w.filename, str(w.message)) for w in caught] == [(__file__, str(caught[1].message))] * 2
    for module in (nn.Softmax(), nn.LogSoftmax()):
        with pytest.warns(UserWarning, match="Implicit dimension choice"):
            module(torch.randn(3, 4))


@both
def test_dtypes(device, fasttx_fn, torch_fn):
    x = torch.randn(3, 5, device=device)
    for given_dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        for dtype in (torch.float32, torch.float16, torch.float64, None):
            if dtype is None and given_dtype == torch.int64:
                continue
            with backend("auto" if torch.float64 in (given_dtype, dtype) else "triton"):
                out, expected = (
                    fasttx_fn(x.to(given_dtype), -1, dtype=dtype),
                    torch_fn(x.to(given_dtype), -1, dtype=dtype),
                )
            assert out.dtype == expected.dtype
            torch.testing.assert_close(out, expected)
    with backend("triton"):
        for x in (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)):
            with pytest.raises((RuntimeError, NotImplementedError)) as theirs_error:
                torch_fn(x, -1)
            with pytest.raises(theirs_error.type, match=r"softmax.*not implemented|not implemented.*softmax"):
                fasttx_fn(x, -1)


@each_backend
@both
def test_autocast_as_torch(device, fasttx_fn, torch_fn, name):
    x = torch.randn(3, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16), backend(name):
        for dtype in (torch.float32, torch.bfloat16):
            assert fasttx_fn(x.to(dtype), -1).dtype == torch_fn(x.to(dtype), -1).dtype
            assert fasttx_fn(x.to(dtype), -1, scale=2.0).dtype == torch_fn(x.to(dtype), -1).dtype
            assert fasttx_fn(x.to(dtype), -1, dtype=torch.bfloat16).dtype == torch.bfloat16
        out, dx = gradients(fasttx_fn, x.bfloat16(), -1, scale=0.5)
    assert dx.dtype == torch.bfloat16


def test_autocast_of_other_devices_gives_float32(monkeypatch):
    """Every device but the CPU has softmax on autocast's float32 list; played on a tensor without data."""
    seen = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "meta")
    monkeypatch.setattr(_softmax, "unsupported_reason", lambda *tensors: None)
    monkeypatch.setattr(_softmax, "_fwd", lambda x, *rest: seen.append(x.dtype) or x)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        F.softmax(torch.ones(2, 3, dtype=dtype, device="meta"), -1, scale=2.0)
    F.softmax(torch.ones(2, 3, dtype=torch.float16, device="meta"), -1, scale=2.0, dtype=torch.bfloat16)
    assert seen == [torch.float32] * 3 + [torch.bfloat16]


# ------------------------------------------------------------------------------------------- mask, scale, dropout


@each_backend
@both
def test_mask_and_scale_over_any_dim(device, fasttx_fn, torch_fn, name):
    x = torch.randn(3, 4, 5, device=device)
    with backend(name):
        for dim in range(-3, 3):
            for mask in (
                torch.rand(3, 4, 5, device=device) < 0.7,
                torch.rand(5, device=device) < 0.7,
                torch.randn(4, 1, device=device),
            ):
                s = 0.5 * x.double()
                s = s.masked_fill(~mask, -INF) if mask.dtype == torch.bool else s + mask
                expected = torch_fn(s, dim)
                empty = (s == -INF).all(dim, keepdim=True)
                expected = expected.masked_fill(empty, -INF if fasttx_fn is F.log_softmax else 0.0)
                out = fasttx_fn(x, dim, mask=mask, scale=0.5)
                torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
                with backend("auto"):
                    torch.testing.assert_close(fasttx_fn(x.double(), dim, mask=mask, scale=0.5), expected)


@each_backend
def test_more_than_five_dims(device, name):
    x = torch.randn(2, 1, 3, 1, 2, 2, 5, device=device)
    mask = torch.rand(2, 1, 1, 1, 1, 2, 5, device=device) < 0.7
    mask[..., 0] = True
    with backend(name):
        out = F.softmax(x, -1, mask=mask)
    torch.testing.assert_close(out, torch.softmax(x.masked_fill(~mask, -INF), -1))


def test_the_mask_itself_gets_its_gradient(device):
    x = torch.randn(2, 3, 5, device=device)
    bias = torch.randn(3, 5, device=device, requires_grad=True)
    with backend("auto"):
        (found,) = torch.autograd.grad(F.softmax(x, -1, mask=bias, scale=0.5).square().sum(), bias)
    (expected,) = torch.autograd.grad(torch.softmax(0.5 * x + bias, -1).square().sum(), bias)
    torch.testing.assert_close(found, expected)


@each_backend
def test_dropout_is_seeded_and_keeps_the_mean(device, name):
    x = torch.zeros(64, 256, device=device)
    with backend(name):
        torch.manual_seed(7)
        out = F.softmax(x, -1, dropout_p=0.25)
        other = F.softmax(x, -1, dropout_p=0.25)
        torch.manual_seed(7)
        again = F.softmax(x, -1, dropout_p=0.25)
        dropped, dx = gradients(F.softmax, torch.randn(64, 256, device=device), -1, dropout_p=0.25)
    assert torch.equal(out, again) and not torch.equal(out, other)
    assert abs(float((out == 0).double().mean()) - 0.25) < 0.02
    torch.testing.assert_close(out.max(), torch.tensor(1 / 256 / 0.75, device=device))
    assert bool(dx.isfinite().all()) and bool((dx[dropped == 0] != 0).any())
    assert F.softmax(x.double(), -1, dropout_p=1.0).abs().max() == 0


@each_backend
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_same_dropout(device, name, use_reentrant):
    x = torch.randn(4, 37, device=device)

    def block(x):
        return F.softmax(x * 2, -1, dropout_p=0.5) * x

    with backend(name):
        torch.manual_seed(3)
        expected = gradients(block, x)
        torch.manual_seed(3)
        found = gradients(lambda x: checkpoint(block, x, use_reentrant=use_reentrant), x)
        if use_reentrant is False:
            compiled = torch.compile(
                lambda x: checkpoint(block, x, use_reentrant=False), fullgraph=True, backend="aot_eager"
            )
            torch.manual_seed(3)
            out, dx = gradients(compiled, x)
            # whatever was drawn, backward used what forward used: dx is that of the mask found in out
            p = (out / x).detach()
            keep = (p != 0).double() * 2
            z = x.double().requires_grad_()
            reference = torch.softmax(z * 2, -1) * keep * z
            weight = torch.linspace(-1, 2, out.numel(), device=device).view(out.shape).double()
            torch.testing.assert_close(dx.double(), torch.autograd.grad(reference, z, weight)[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_any_shape_stride_dim_and_mask(device):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @st.composite
    def calls(draw):
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        dim = draw(st.integers(-len(shape), len(shape) - 1))
        mask_shape = [draw(st.sampled_from(sorted({1, n}))) for n in shape[draw(st.integers(0, len(shape) - 1)) :]]
        order = draw(st.permutations(range(len(shape))))
        name = draw(st.sampled_from(["triton", "torch"]))
        return shape, dim, mask_shape, order, draw(st.booleans()), name, draw(st.integers(0, 2**31))

    @hypothesis.settings(max_examples=40, deadline=None)
    @hypothesis.given(call=calls())
    def holds(call):
        shape, dim, mask_shape, order, boolean, name, seed = call
        torch.manual_seed(seed)
        x = torch.randn([shape[i] for i in order], device=device).permute([order.index(i) for i in range(len(shape))])
        assert list(x.shape) == shape
        mask = torch.rand(mask_shape, device=device) < 0.6 if boolean else torch.randn(mask_shape, device=device)
        with backend(name):
            out, dx = gradients(F.softmax, x, dim, mask=mask, scale=0.5)
        expected, expected_dx = gradients(F.softmax, x.double(), dim, mask=mask, scale=0.5)  # torch's operators
        torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(dx.double(), expected_dx, atol=1e-6, rtol=1e-5)

    holds()


# ------------------------------------------------------------------------------------------ autograd and transforms


@both
def test_float64_passes_gradcheck_and_gradgradcheck(fasttx_fn, torch_fn):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 5) < 0.8
    mask[:, 0] = True
    for function in (lambda x: fasttx_fn(x, -1), lambda x: fasttx_fn(x, 0), lambda x: fasttx_fn(x, -1, scale=0.5)):
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, x)
    assert torch.autograd.gradgradcheck(lambda x: F.softmax(x, -1, mask=mask, scale=0.5), x)


@each_backend
@pytest.mark.parametrize("p", [0.0, 0.5])
@both
def test_double_backward(device, fasttx_fn, torch_fn, name, p):
    if p and fasttx_fn is F.log_softmax:
        pytest.skip("log_softmax has no dropout")
    x = torch.randn(3, 33, device=device)
    mask = torch.rand(33, device=device) < 0.8
    options = {"dropout_p": p} if p else {}

    def second(function, x):
        x = x.detach().requires_grad_()
        out = function(x)
        (g,) = torch.autograd.grad(out.masked_fill(~mask, 0.0).square().sum(), x, create_graph=True)
        return out, *torch.autograd.grad(g.square().sum() + g.sum(), x)

    with backend(name):
        out, found = second(lambda x: fasttx_fn(x, -1, mask=mask, scale=0.5, **options), x)
    keep = (out != 0).double() / (1 - p)
    _, expected = second(lambda x: torch_fn((0.5 * x).masked_fill(~mask, -INF), -1) * (keep if p else 1.0), x.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@each_backend
@both
def test_fullgraph(device, fasttx_fn, torch_fn, name):
    x = torch.randn(4, 7, 33, device=device)
    mask = torch.rand(4, 1, 33, device=device) < 0.9
    mask[..., 0] = True
    compiled = torch.compile(
        lambda x, mask: fasttx_fn(x, -1, mask=mask, scale=0.5), fullgraph=True, backend="aot_eager"
    )
    LAUNCHES.clear()
    with backend(name):
        found = gradients(compiled, x, mask)
        assert LAUNCHES == {("softmax_fwd", name): 1, ("softmax_bwd", name): 1}
        assert all(torch.equal(a, b) for a, b in zip(found, gradients(fasttx_fn, x, -1, mask=mask, scale=0.5)))
        plain = torch.compile(lambda x: fasttx_fn(x, -1), fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (5, 6):
            torch.testing.assert_close(gradients(plain, x[:, :n]), gradients(torch_fn, x[:, :n], -1))


# ------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_modules_are_as_in_torch(device, name):
    fasttx_module, torch_module = getattr(nn, name)(-1), getattr(torch.nn, name)(-1)
    assert isinstance(fasttx_module, type(torch_module)) and type(fasttx_module).__name__ == name
    assert repr(fasttx_module) == repr(torch_module) and fasttx_module.state_dict() == {}
    x = torch.randn(3, 5, device=device)
    for module in (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
        assert type(module) is type(fasttx_module)
        with backend("triton"):
            LAUNCHES.clear()
            torch.testing.assert_close(module(x), torch_module(x))
            assert LAUNCHES == {("softmax_fwd", "triton"): 1}


def test_every_other_name_is_that_of_torch():
    from fasttx.nn import Linear, Module
    from fasttx.nn.functional import relu

    assert Linear is torch.nn.Linear and Module is torch.nn.Module and relu is torch.nn.functional.relu
    assert nn.init is torch.nn.init and nn.functional is F
    assert set(dir(torch.nn)) <= set(dir(nn)) and set(dir(torch.nn.functional)) <= set(dir(F))
    assert set(nn.__all__) <= set(dir(nn)) and all(getattr(nn, n) is not getattr(torch.nn, n, None) for n in nn.__all__)
    for module in (nn, F):
        with pytest.raises(AttributeError, match="neither fasttx"):
            module.no_such_name  # noqa: B018


BAD = {
    "mask that does not broadcast": (
        {"mask": torch.ones(2, 4) > 0},
        ValueError,
        r"^mask: got \(2, 4\); allowed is what broadcasts to the shape of input, \(2, 3\)$",
    ),
    "mask with more dims": ({"mask": torch.ones(1, 2, 3, dtype=torch.bool)}, ValueError, "mask"),
    "integer mask": (
        {"mask": torch.ones(2, 3, dtype=torch.int64)},
        ValueError,
        "^mask: got torch.int64; allowed is bool",
    ),
    "mask of another device": ({"mask": torch.ones(3, device="meta")}, ValueError, "mask.*meta"),
    "mask that is a list": ({"mask": [1, 1, 1]}, TypeError, "^mask: got a list; allowed is a Tensor or None$"),
    "scale": ({"scale": math.nan}, ValueError, "^scale: got nan; allowed is a finite number$"),
    "scale of another type": ({"scale": "2"}, TypeError, "^scale: got '2'; allowed is a finite number$"),
    "dropout_p": ({"dropout_p": -0.1}, ValueError, r"^dropout_p: got -0.1; allowed is a number in \[0, 1\]$"),
    "dropout_p of another type": (
        {"dropout_p": None},
        TypeError,
        r"^dropout_p: got None; allowed is a number in \[0, 1\]$",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bad_input_is_named(case, dtype):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        F.softmax(torch.ones(2, 3, dtype=dtype), -1, **options)
