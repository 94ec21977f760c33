"""layer_norm and LayerNorm: torch's semantics; dropout_add_layer_norm and its module: those of the three functions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as torch_functional
from ops.test_dropout_add_layer_norm import factor_of, state_on
from torch.utils.checkpoint import checkpoint

import fasttx.nn as nn
import fasttx.nn.functional as F
from fasttx.functional import _dropout_add_layer_norm, _layer_norm
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

each_backend = pytest.mark.parametrize("name", ["triton", "torch"])
FWD, BWD = "dropout_add_layer_norm_fwd", "dropout_add_layer_norm_bwd"
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def gradients(function, tensors, dout=None):
    """out and the gradients of what is given."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weight = torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    out.backward(weight)
    return out.detach(), *(t.grad for t in leaves if t is not None)


def inputs(device, shape=(2, 5, 33), dtype=torch.float32):
    x, residual = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], device=device, dtype=dtype) for _ in range(2))
    return x, residual, weight, bias


# --------------------------------------------------------------------------------------------------------- layer_norm


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_dims", [1, 2, 3])
@pytest.mark.parametrize("affine", ["", "weight", "bias", "weight bias"])
def test_layer_norm_against_float64(device, name, dtype, n_dims, affine):
    shape = (2, 5, 33)[3 - n_dims :]
    x = torch.randn(2, 5, 33, device=device, dtype=dtype)
    weight, bias = (torch.randn(shape, device=device).to(dtype) if n in affine else None for n in ("weight", "bias"))
    LAUNCHES.clear()
    with backend(name):
        found = gradients(lambda x, w, b: F.layer_norm(x, shape, w, b, 1e-6), (x, weight, bias))
    assert LAUNCHES == ({(FWD, "triton"): 1, (BWD, "triton"): 1} if name == "triton" else {})
    doubles = [None if t is None else t.double() for t in (x, weight, bias)]
    same = gradients(lambda x, w, b: torch_functional.layer_norm(x, shape, w, b, 1e-6), (x, weight, bias))
    reference = gradients(lambda x, w, b: torch_functional.layer_norm(x, shape, w, b, 1e-6), doubles)
    assert len(found) == 2 + len(affine.split())
    for triple in zip(found, same, reference):
        assert_as_accurate(*triple)


WRONG = {
    "shape": ((torch.ones(3, 5), (4,)), {}),
    "more dims": ((torch.ones(5), (3, 5)), {}),
    "no shape": ((torch.ones(3, 5), ()), {}),
    "int": ((torch.ones(3, 5), 5), {}),
    "float sizes": ((torch.ones(3, 5), (5.0,)), {}),
    "weight": ((torch.ones(3, 5), (5,), torch.ones(4)), {}),
    "bias": ((torch.ones(3, 5), (5,), None, torch.ones(1, 5)), {}),
    "weight dtype": ((torch.ones(3, 5), (5,), torch.ones(5).bfloat16()), {}),
    "integers": ((torch.ones(3, 5, dtype=torch.int64), (5,)), {}),
    "list": (([1.0], (1,)), {}),
    "eps": ((torch.ones(3, 5), (5,)), {"eps": "a"}),
    "weight list": ((torch.ones(3, 1), (1,), [1.0]), {}),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_of_torch(case):
    args, kwargs = WRONG[case]
    with pytest.raises(Exception) as wanted:
        torch_functional.layer_norm(*args, **kwargs)
    for name in ("auto", "torch", "triton"):
        with backend(name), pytest.raises(type(wanted.value)) as found:
            F.layer_norm(*args, **kwargs)
        assert str(found.value) == str(wanted.value)


class Named(torch.Tensor):
    """A subclass that keeps its class, as torch's functions do by default."""


TO_TORCH = {
    "float64": lambda f, x, w: f(x.double(), w.double()),
    "vmap": lambda f, x, w: torch.func.vmap(lambda y: f(y, w))(x),
    "jacrev": lambda f, x, w: torch.func.jacrev(lambda y: f(y, w))(x),
    "jvp": lambda f, x, w: torch.func.jvp(lambda y: f(y, w), (x,), (x,)),
    "subclass": lambda f, x, w: f(x.as_subclass(Named), w),
}


@pytest.mark.parametrize("case", TO_TORCH)
@pytest.mark.parametrize("which", ["layer_norm", "dropout_add_layer_norm"])
def test_what_the_operator_does_not_cover(device, which, case):
    x, _, weight, _ = inputs(device)
    call = TO_TORCH[case]

    def fasttx_fn(x, w):
        if which == "layer_norm":
            return F.layer_norm(x, w.shape, w)
        return F.dropout_add_layer_norm(x, x, w, None)

    def torch_fn(x, w):
        return torch_functional.layer_norm(x if which == "layer_norm" else x + x, w.shape, w)

    with backend("auto"):
        torch.testing.assert_close(call(fasttx_fn, x, weight), call(torch_fn, x, weight))
    with backend("triton"), pytest.raises(BackendError, match=f"^{which}: backend 'triton'"):
        call(fasttx_fn, x, weight)


def test_mixed_dtypes_and_empty_go_to_torch(device):
    x, _, weight, bias = inputs(device)
    with backend("auto"):
        mixed = F.layer_norm(x.bfloat16(), (33,), weight, bias)
        torch.testing.assert_close(mixed, torch_functional.layer_norm(x.bfloat16(), (33,), weight, bias))
    for name in ("auto", "triton"):
        with backend(name):
            for shape, n in (((0, 33), 33), ((3, 0), 0)):
                assert F.layer_norm(torch.ones(shape, device=device), (n,)).shape == shape
                empty = torch.ones(shape, device=device, requires_grad=True)
                F.dropout_add_layer_norm(empty, empty, None, None, dropout_p=0.5).sum().backward()
                assert empty.grad.shape == shape


def test_autocast_of_other_devices_gives_float32(monkeypatch):
    """Every device but the CPU has layer norm on autocast's float32 list; played on tensors without data."""
    seen = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "meta")
    for module in (_layer_norm, _dropout_add_layer_norm):
        monkeypatch.setattr(module, "unsupported_reason", lambda *tensors: None)
        monkeypatch.setattr(module, "forced_backend", lambda: "triton")
    monkeypatch.setattr(_layer_norm, "_fwd", lambda x, *rest: seen.append((x.dtype, rest[-2])) or (x,))
    w = torch.ones(3, device="meta")
    for dtype in DTYPES:
        x = torch.ones(2, 3, dtype=dtype, device="meta")
        F.layer_norm(x, (3,), w, w)
        F.dropout_add_layer_norm(x, x, w, w)
    assert seen == [(dtype, torch.float32) for dtype in DTYPES for _ in range(2)]


@each_backend
def test_autocast_on_a_cpu_leaves_the_dtype(name):
    x, residual, weight, bias = inputs(torch.device("cpu"), dtype=torch.bfloat16)
    weight, bias = weight.float(), bias.float()
    with torch.autocast("cpu", torch.bfloat16), backend(name):
        expected = torch_functional.layer_norm(x + residual, (33,), weight, bias)
        out, dx, *_ = gradients(lambda *t: F.dropout_add_layer_norm(*t), (x, residual, weight, bias))
        assert out.dtype == expected.dtype == torch.bfloat16 and dx.dtype == torch.bfloat16
        torch.testing.assert_close(out, expected, atol=0.05, rtol=0.02)
        wide = F.dropout_add_layer_norm(x, residual.float(), weight, bias)
        assert (
            wide.dtype == torch_functional.layer_norm(x + residual.float(), (33,), weight, bias).dtype == torch.float32
        )


# ----------------------------------------------------------------------------------------------- dropout_add_layer_norm


def written_out(x, residual, weight, bias, factor=None):
    z = x if factor is None else x * factor
    return torch_functional.layer_norm(z if residual is None else z + residual, x.shape[-1:], weight, bias)


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("absent", [(), (1,), (2, 3)], ids=str)
def test_gradients_against_float64(device, name, dtype, p, absent):
    tensors = [None if i in absent else t for i, t in enumerate(inputs(device, dtype=dtype))]
    state = state_on(device) if p else None
    with backend(name):
        found = gradients(lambda *t: F.dropout_add_layer_norm(*t, dropout_p=p, rng_state=state), tensors)
    factor = factor_of("triton" if name == "triton" else "torch", tensors[0], None, state, p)
    same = gradients(lambda *t: written_out(*t, None if factor is None else factor.to(dtype)), tensors)
    doubles = [None if t is None else t.double() for t in tensors]
    reference = gradients(lambda *t: written_out(*t, factor), doubles)
    for triple in zip(found, same, reference):
        assert_as_accurate(*triple)


@each_backend
def test_only_some_inputs_require_a_gradient(device, name):
    tensors = inputs(device)
    for number in range(1, 16):
        for p in (0.0, 0.5):
            leaves = [t.clone().requires_grad_(bool(number & 1 << i)) for i, t in enumerate(tensors)]
            with backend(name):
                F.dropout_add_layer_norm(*leaves, dropout_p=p, rng_state=state_on(device)).square().sum().backward()
            assert [t.grad is not None for t in leaves] == [t.requires_grad for t in leaves]


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
def test_dropout_is_seeded_and_off_in_evaluation(device, name):
    tensors = inputs(device, (64, 256))
    with backend(name):
        torch.manual_seed(7)
        out = F.dropout_add_layer_norm(*tensors, dropout_p=0.25)
        other = F.dropout_add_layer_norm(*tensors, dropout_p=0.25)
        torch.manual_seed(7)
        assert torch.equal(out, F.dropout_add_layer_norm(*tensors, dropout_p=0.25))
        assert not torch.equal(out, other)
        plain = F.dropout_add_layer_norm(*tensors, dropout_p=0.25, training=False, rng_state=state_on(device))
        torch.testing.assert_close(plain, written_out(*tensors), atol=1e-5, rtol=1e-5)
        _, dx, dresidual, *_ = gradients(lambda *t: F.dropout_add_layer_norm(*t, dropout_p=0.25), tensors)
    assert abs(float((dx == 0).double().mean()) - 0.25) < 0.02 and bool((dresidual != 0).all())


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_packed_and_padded_rows_drop_the_same(device, name, dtype):
    if dtype == torch.float64 and name == "triton":
        pytest.skip("no kernel for float64")
    x, residual, weight, bias = inputs(device, (3, 6, 33), dtype)
    number = torch.arange(18, device=device).view(3, 6)
    real = torch.tensor([6, 2, 4], device=device)[:, None] > torch.arange(6, device=device)
    options = {"dropout_p": 0.4, "rng_state": state_on(device)}
    with backend(name):
        whole = F.dropout_add_layer_norm(x, residual, weight, bias, row_index=number, **options)
        packed = F.dropout_add_layer_norm(x[real], residual[real], weight, bias, row_index=number[real], **options)
    assert torch.equal(packed, whole[real])
    factor = factor_of("triton", x, number.flatten(), state_on(device), 0.4)
    expected = written_out(*(t.double() for t in (x, residual, weight, bias)), factor)
    torch.testing.assert_close(whole.double(), expected, atol=2e-6, rtol=1e-5)


@each_backend
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_same_dropout(device, name, use_reentrant):
    tensors = inputs(device)
    block = lambda *t: F.dropout_add_layer_norm(*t, dropout_p=0.5)  # noqa: E731
    with backend(name):
        torch.manual_seed(3)
        expected = gradients(block, tensors)
        torch.manual_seed(3)
        found = gradients(lambda *t: checkpoint(block, *t, use_reentrant=use_reentrant), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@each_backend
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_double_backward(device, name, p):
    tensors = inputs(device, (3, 33))
    state = state_on(device) if p else None

    def second(function, tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    with backend(name):
        found = second(lambda *t: F.dropout_add_layer_norm(*t, dropout_p=p, rng_state=state), tensors)
    factor = factor_of(name, tensors[0], None, state, p)
    expected = second(lambda *t: written_out(*t, factor), [t.double() for t in tensors])
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, atol=1e-3 * float(b.abs().max()), rtol=1e-3)


@each_backend
@pytest.mark.parametrize("p", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_fullgraph(device, name, p):
    torch._dynamo.reset()
    tensors, state = inputs(device), state_on(device) if p else None
    function = lambda *t: F.dropout_add_layer_norm(*t, dropout_p=p, rng_state=state)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    LAUNCHES.clear()
    with backend(name):
        for n_rows in (5, 4, 3):
            own = [tensors[0][:, :n_rows], tensors[1][:, :n_rows], *tensors[2:]]
            found, expected = gradients(compiled, own), gradients(function, own)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert LAUNCHES == {(FWD, name): 6, (BWD, name): 6}
        plain = torch.compile(lambda x, w, b: F.layer_norm(x, (33,), w, b), fullgraph=True, backend="aot_eager")
        norm = gradients(plain, (tensors[0], *tensors[2:]))
        expected = gradients(lambda x, w, b: torch_functional.layer_norm(x, (33,), w, b), (tensors[0], *tensors[2:]))
        torch.testing.assert_close(norm, expected, atol=1e-4, rtol=1e-4)


X = torch.ones(2, 3)
BAD = {
    "input": ({"input": [1.0]}, TypeError, "^input: got a list; allowed is a Tensor$"),
    "integers": ({"input": X.long()}, ValueError, "^input: .*int64"),
    "0-d": ({"input": X.sum()}, ValueError, r"^input: .*\(\)"),
    "residual": ({"residual": X[0]}, ValueError, r"^residual: .*\(3,\).*\(2, 3\)"),
    "residual type": ({"residual": 1.0}, TypeError, "^residual: .*float"),
    "weight": ({"weight": X}, ValueError, r"^weight: .*\(2, 3\).*\(3,\)"),
    "bias": ({"bias": X[0].long()}, ValueError, "^bias: .*int64"),
    "device": ({"residual": X.to("meta")}, ValueError, "^residual: .*meta"),
    "p": ({"dropout_p": 1.0}, ValueError, r"^dropout_p: got 1.0; allowed is a number in \[0, 1\)$"),
    "p type": ({"dropout_p": None}, TypeError, r"^dropout_p: got None; allowed is a number in \[0, 1\)$"),
    "eps": ({"eps": -1.0}, ValueError, "^eps: .*-1.0"),
    "row_index dtype": ({"row_index": X[:, 0]}, ValueError, "^row_index: .*float32"),
    "row_index shape": ({"row_index": torch.arange(3)}, ValueError, r"^row_index: .*\(3,\).*\(2,\)"),
    "rng_state": ({"rng_state": torch.zeros(3)}, ValueError, r"^rng_state: .*\(3,\)"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bad_input_is_named(case, dtype):
    wrong, error, message = BAD[case]
    good = {"input": X.to(dtype), "residual": None, "weight": None, "bias": None}
    with pytest.raises(error, match=message):
        F.dropout_add_layer_norm(**{**good, **wrong})


# ------------------------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 1e-12}], ids=str)
def test_modules(device, options):
    fasttx_module, torch_module = nn.LayerNorm(33, **options).to(device), torch.nn.LayerNorm(33, **options).to(device)
    fused = nn.DropoutAddLayerNorm(33, 0.5, **options).to(device)
    assert isinstance(fasttx_module, torch.nn.LayerNorm) and repr(fasttx_module) == repr(torch_module)
    assert repr(fused) == repr(torch_module).replace("LayerNorm(", "DropoutAddLayerNorm(").replace(
        ")", ", p=0.5)"
    ).replace("(33,, p=0.5)", "(33,)")
    for parameter in torch_module.parameters():
        torch.nn.init.normal_(parameter)
    for module in (fasttx_module, fused):
        module.load_state_dict(torch_module.state_dict())
        torch_module.load_state_dict(module.state_dict())
    x, residual, *_ = inputs(device)
    for module in (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
        LAUNCHES.clear()
        with backend("triton"):
            torch.testing.assert_close(module(x), torch_module(x))
        assert LAUNCHES == {(FWD, "triton"): 1}
    for module in (fused.eval(), copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        with backend("triton"):
            torch.testing.assert_close(module(x, residual), torch_module(x + residual), atol=1e-5, rtol=1e-5)
    number = torch.arange(10, device=device).view(2, 5)
    with backend("triton"):
        torch.manual_seed(1)
        whole = fused.train()(x, residual, number)
        torch.manual_seed(1)
        flipped = fused(x.flip(0), residual.flip(0), number.flip(0))
    assert torch.equal(whole, flipped.flip(0)) and not torch.equal(whole, fused.eval()(x, residual))


def test_a_norm_over_several_dims():
    fasttx_module, torch_module = nn.LayerNorm((5, 33)), torch.nn.LayerNorm((5, 33))
    x = torch.randn(2, 5, 33)
    with backend("triton"):
        torch.testing.assert_close(fasttx_module(x), torch_module(x))


def test_what_the_fused_module_refuses():
    with pytest.raises(ValueError, match=r"^normalized_shape: got \(5, 33\); allowed is one size$"):
        nn.DropoutAddLayerNorm((5, 33))
    with pytest.raises(ValueError, match=r"^p: got 1.0; allowed is a number in \[0, 1\)$"):
        nn.DropoutAddLayerNorm(33, 1.0)
    assert nn.DropoutAddLayerNorm([33]).normalized_shape == (33,)
