"""gelu and GELU: torch's semantics; linear_gelu and its module: those of linear, gelu and dropout in turn."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as torch_functional
from nn.test_layer_norm import gradients
from ops.test_bias_gelu import factor_of, state_on
from torch.utils.checkpoint import checkpoint

import fasttx.nn as nn
import fasttx.nn.functional as F
from fasttx.functional import _gelu
from fasttx.ops.backends import BackendError, backend
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

each_backend = pytest.mark.parametrize("name", ["triton", "torch"])
each_form = pytest.mark.parametrize("approximate", ["none", "tanh"])
FWD, BWD = "bias_gelu_fwd", "bias_gelu_bwd"
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def inputs(device, shape=(2, 5, 17), dtype=torch.float32, out_features=33):
    x = torch.randn(shape, device=device).to(dtype)
    weight = (torch.randn(out_features, shape[-1], device=device) / 4).to(dtype)
    return x, weight, torch.randn(out_features, device=device).to(dtype)


def written_out(x, weight, bias, approximate="none", factor=None):
    out = torch_functional.gelu(torch_functional.linear(x, weight, bias), approximate=approximate)
    return out if factor is None else out * factor


# --------------------------------------------------------------------------------------------------------------- gelu


@each_backend
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 33), ()], ids=str)
def test_gelu_against_float64(device, name, dtype, approximate, shape):
    x = torch.randn(shape, device=device).to(dtype)
    LAUNCHES.clear()
    with backend(name):
        found = gradients(lambda x: F.gelu(x, approximate=approximate), (x,))
    assert LAUNCHES == ({(FWD, "triton"): 1, (BWD, "triton"): 1} if name == "triton" else {})
    own = lambda x: torch_functional.gelu(x, approximate=approximate)  # noqa: E731
    for triple in zip(found, gradients(own, (x,)), gradients(own, (x.double(),)), strict=True):
        assert_as_accurate(*triple)


X = torch.ones(2, 3)
WRONG = {
    "positional": ((X, "tanh"), {}),
    "word": ((X,), {"approximate": "erf"}),
    "number": ((X,), {"approximate": 1}),
    "None": ((X,), {"approximate": None}),
    "list": (([1.0],), {}),
    "integers": ((X.long(),), {}),
    "complex": ((X.to(torch.complex64),), {}),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_of_torch(case):
    args, kwargs = WRONG[case]
    with pytest.raises(Exception) as wanted:
        torch_functional.gelu(*args, **kwargs)
    for name in ("auto", "torch", "triton"):
        with backend(name), pytest.raises(type(wanted.value)) as found:
            F.gelu(*args, **kwargs)
        assert case == "positional" or str(found.value) == str(wanted.value)  # there Python counts the arguments


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
@pytest.mark.parametrize("which", ["gelu", "linear_gelu"])
def test_what_the_operator_does_not_cover(device, which, case):
    x, weight, _ = inputs(device)
    call = TO_TORCH[case]

    def fasttx_fn(x, w):
        return F.gelu(x) if which == "gelu" else F.linear_gelu(x, w)

    def torch_fn(x, w):
        return torch_functional.gelu(x if which == "gelu" else torch_functional.linear(x, w))

    with backend("auto"):
        found, expected = call(fasttx_fn, x, weight), call(torch_fn, x, weight)
        torch.testing.assert_close(found, expected)
        assert type(found) is type(expected)
    with backend("triton"), pytest.raises(BackendError, match=f"^{which}: backend 'triton'"):
        call(fasttx_fn, x, weight)


def test_strides_and_empty(device):
    """Tensors that do not lie by rows are left to torch, whose kernel keeps the strides, unless a kernel is forced."""
    x = torch.randn(2, 4, 6, 8, device=device)
    assert _gelu._in_rows(x) and _gelu._in_rows(x[..., 1:5]) and _gelu._in_rows(x[:, 0, 0])
    assert not _gelu._in_rows(x.transpose(1, 3)) and not _gelu._in_rows(x.transpose(0, 1))
    for strided in (x.transpose(1, 3), x.transpose(0, 1), x[..., 1:5]):
        with backend("triton"):
            torch.testing.assert_close(F.gelu(strided), torch_functional.gelu(strided))
    for name in ("auto", "triton"):
        with backend(name):
            for shape in ((0, 3), (3, 0)):
                assert F.gelu(torch.ones(shape, device=device)).shape == shape
                empty = torch.ones(0, 3, device=device, requires_grad=True)
                F.linear_gelu(empty, X, X[:, 0], dropout_p=0.5).sum().backward()
                assert empty.grad.shape == (0, 3)
            assert F.linear_gelu(X, X[:0]).shape == (2, 0)


def test_the_choice_of_auto(monkeypatch):
    """A device with a kernel runs it, unless strides speak against it; one without runs torch's functions."""
    for has, x, taken in ((True, X, True), (False, X, False), (True, X.t(), False), (True, X[0].sum(), True)):
        monkeypatch.setattr(_gelu.BIAS_GELU.__class__, "has_kernel", lambda op, device, dtype, has=has: has)
        assert (_gelu._gelu_to_torch(x, "none", "auto") is None) == taken
        LAUNCHES.clear()
        F.linear_gelu(X, X)
        assert LAUNCHES == ({(FWD, "torch"): 1} if has else {})


# -------------------------------------------------------------------------------------------------------- linear_gelu


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_against_float64(device, name, approximate, dtype, p, biased):
    x, weight, bias = inputs(device, dtype=dtype)
    tensors, state = (x, weight, bias if biased else None), state_on(device) if p else None
    options = {"approximate": approximate, "dropout_p": p, "rng_state": state}
    LAUNCHES.clear()
    with backend(name):
        found = gradients(lambda *t: F.linear_gelu(*t, **options), tensors)
    runs = {"auto": "torch"}.get(name, name)
    assert LAUNCHES == ({} if name == "auto" and not p else {(FWD, runs): 1, (BWD, runs): 1})
    factor = factor_of(runs, found[0], None, state, p)
    same = gradients(lambda *t: written_out(*t, approximate, None if factor is None else factor.to(dtype)), tensors)
    doubles = [None if t is None else t.double() for t in tensors]
    reference = gradients(lambda *t: written_out(*t, approximate, factor), doubles)
    for triple in zip(found, same, reference, strict=True):
        assert_as_accurate(*triple)


@each_backend
def test_only_some_inputs_require_a_gradient(device, name):
    tensors = inputs(device)
    for number in range(1, 8):
        leaves = [t.clone().requires_grad_(bool(number & 1 << i)) for i, t in enumerate(tensors)]
        with backend(name):
            F.linear_gelu(*leaves).square().sum().backward()
        assert [t.grad is not None for t in leaves] == [t.requires_grad for t in leaves]


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
def test_dropout_is_seeded_and_off_in_evaluation(device, name):
    tensors = inputs(device, (64, 17), out_features=256)
    with backend(name):
        torch.manual_seed(7)
        out = F.linear_gelu(*tensors, dropout_p=0.25)
        other = F.linear_gelu(*tensors, dropout_p=0.25)
        torch.manual_seed(7)
        assert torch.equal(out, F.linear_gelu(*tensors, dropout_p=0.25))
        assert not torch.equal(out, other)
        plain = F.linear_gelu(*tensors, dropout_p=0.25, training=False, rng_state=state_on(device))
    torch.testing.assert_close(plain, written_out(*tensors), atol=1e-5, rtol=1e-5)
    assert abs(float((out == 0).double().mean()) - 0.25) < 0.02
    scale = 256 / 192
    torch.testing.assert_close(out[out != 0], plain[out != 0] * scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("drawn", [False, True])
def test_packed_and_padded_rows_drop_the_same(device, name, dtype, drawn):
    if dtype == torch.float64 and name == "triton":
        pytest.skip("no kernel for float64")
    x, weight, bias = inputs(device, (3, 6, 17), dtype)
    number = torch.arange(18, device=device).view(3, 6)
    real = torch.tensor([6, 2, 4], device=device)[:, None] > torch.arange(6, device=device)
    state = None if drawn else state_on(device)
    with backend(name):
        torch.manual_seed(5)
        whole = F.linear_gelu(x, weight, bias, row_index=number, dropout_p=0.4, rng_state=state)
        torch.manual_seed(5)
        packed = F.linear_gelu(x[real], weight, bias, row_index=number[real], dropout_p=0.4, rng_state=state)
    torch.testing.assert_close(packed, whole[real])
    assert torch.equal(packed == 0, whole[real] == 0)
    if not drawn:
        factor = factor_of("triton", whole, number.flatten(), state, 0.4)
        expected = written_out(x.double(), weight.double(), bias.double(), factor=factor)
        torch.testing.assert_close(whole.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["triton", "torch", "auto"])
def test_autocast(device, name):
    """The product in autocast's dtype; a float32 bias stays float32, and its gradient sums float32."""
    x, weight, bias = inputs(device)
    with torch.autocast(device.type, torch.bfloat16), backend(name):
        found = gradients(F.linear_gelu, (x, weight, bias))
        wide = F.linear_gelu(x, weight, bias.half(), dropout_p=0.5, rng_state=state_on(device))
    with torch.autocast(device.type, torch.bfloat16):
        same = gradients(written_out, (x, weight, bias))
    assert [t.dtype for t in found] == [t.dtype for t in same] and found[0].dtype == wide.dtype == torch.bfloat16
    reference = gradients(written_out, [t.bfloat16().double() for t in (x, weight)] + [bias.double()])
    for found_one, own, ref in zip(found, same, reference):
        assert_as_accurate(found_one.bfloat16(), own.bfloat16(), ref)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_float32_bias_beside_another_dtype(device, name, dtype):
    x, weight, bias = inputs(device, dtype=dtype)
    for which in (name, "auto"):
        if dtype == torch.float64 and which == "triton":
            continue
        with backend(which):
            found = gradients(F.linear_gelu, (x, weight, bias.float()))
        assert [t.dtype for t in found] == [dtype] * 3 + [torch.float32]
        same = gradients(written_out, (x, weight, bias))
        reference = gradients(written_out, [x.double(), weight.double(), bias.float().double()])
        for found_one, own, ref in zip(found, same, reference):
            assert_as_accurate(found_one, own.to(found_one.dtype), ref)


@each_backend
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_same_dropout(device, name, use_reentrant):
    tensors = inputs(device)
    block = lambda *t: F.linear_gelu(*t, dropout_p=0.5)  # noqa: E731
    with backend(name):
        torch.manual_seed(3)
        expected = gradients(block, tensors)
        torch.manual_seed(3)
        found = gradients(lambda *t: checkpoint(block, *t, use_reentrant=use_reentrant), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@each_backend
@each_form
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_double_backward(device, name, approximate, p):
    tensors, state = inputs(device, (3, 17)), state_on(device) if p else None

    def second(function, tensors):
        leaves = [t.detach().requires_grad_() for t in tensors]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    options = {"approximate": approximate, "dropout_p": p, "rng_state": state}
    with backend(name):
        found = second(lambda *t: F.linear_gelu(*t, **options), tensors)
    factor = factor_of(name, torch.empty(3, 33, device=device), None, state, p)
    expected = second(lambda *t: written_out(*t, approximate, factor), [t.double() for t in tensors])
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, atol=1e-3 * float(b.abs().max()), rtol=1e-3)


@each_backend
@pytest.mark.parametrize("p", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_fullgraph(device, name, p):
    torch._dynamo.reset()
    (x, *rest), state = inputs(device), state_on(device) if p else None
    function = lambda *t: F.linear_gelu(*t, dropout_p=p, rng_state=state)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    LAUNCHES.clear()
    with backend(name):
        for n_rows in (5, 4):
            own = (x[:, :n_rows], *rest)
            found, expected = gradients(compiled, own), gradients(function, own)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert LAUNCHES == {(FWD, name): 4, (BWD, name): 4}
        plain = torch.compile(lambda x: F.gelu(x, approximate="tanh"), fullgraph=True, backend="aot_eager")
        expected = gradients(lambda x: torch_functional.gelu(x, approximate="tanh"), (x,))
        torch.testing.assert_close(gradients(plain, (x,)), expected)


BAD = {
    "input": ({"input": [1.0]}, TypeError, "^input: got a list; allowed is a Tensor$"),
    "integers": ({"input": X.long()}, ValueError, "^input: .*int64"),
    "0-d": ({"input": X.sum()}, ValueError, r"^input: .*\(\)"),
    "weight": (
        {"weight": X[0]},
        ValueError,
        r"^weight: got \(3,\); allowed is \(out_features, 3\), as input is \(2, 3\)$",
    ),
    "in_features": (
        {"weight": X.t()},
        ValueError,
        r"^weight: got \(3, 2\); allowed is \(out_features, 3\), as input is \(2, 3\)$",
    ),
    "weight type": ({"weight": None}, TypeError, "^weight: got None; allowed is a Tensor$"),
    "weight dtype": ({"weight": X.half()}, ValueError, "^weight: .*float16"),
    "bias": ({"bias": X[0]}, ValueError, r"^bias: .*\(3,\).*\(2,\)"),
    "bias dtype": (
        {"bias": X[:, 0].half()},
        ValueError,
        "^bias: got torch.float16; allowed is .*, as input is, or torch.float32$",
    ),
    "bias integers": ({"bias": X[:, 0].long()}, ValueError, "^bias: .*int64"),
    "bias type": ({"bias": 1.0}, TypeError, "^bias: .*float"),
    "device": ({"bias": X[:, 0].to("meta")}, ValueError, "^bias: .*meta"),
    "approximate": ({"approximate": "erf"}, ValueError, "^approximate: got 'erf'; allowed is 'none' or 'tanh'$"),
    "p": ({"dropout_p": 1.0}, ValueError, r"^dropout_p: got 1.0; allowed is a number in \[0, 1\)$"),
    "p type": ({"dropout_p": None}, TypeError, r"^dropout_p: got None; allowed is a number in \[0, 1\)$"),
    "row_index dtype": ({"row_index": X[:, 0]}, ValueError, "^row_index: .*float32"),
    "row_index shape": ({"row_index": torch.arange(3)}, ValueError, r"^row_index: .*\(3,\).*\(2,\)"),
    "rng_state": ({"rng_state": torch.zeros(3)}, ValueError, r"^rng_state: .*\(3,\)"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bad_input_is_named(case, dtype):
    wrong, error, message = BAD[case]
    with pytest.raises(error, match=message):
        F.linear_gelu(**{"input": X.to(dtype), "weight": X.to(dtype), **wrong})


# ------------------------------------------------------------------------------------------------------------ modules


@each_form
@pytest.mark.parametrize("biased", [True, False])
def test_modules(device, approximate, biased):
    own = torch.nn.Linear(17, 33, bias=biased).to(device).eval()
    fasttx_module, torch_module = nn.GELU(approximate), torch.nn.GELU(approximate)
    assert isinstance(fasttx_module, torch.nn.GELU) and repr(fasttx_module) == repr(torch_module)
    shared = nn.LinearGELU.from_linear(own, approximate, 0.5)
    assert shared.weight is own.weight and shared.bias is own.bias and not shared.training
    assert repr(shared) == f"LinearGELU({own.extra_repr()}, approximate={approximate!r}, p=0.5)"
    fresh = nn.LinearGELU(17, 33, biased, approximate, 0.5, device=device).eval()
    fresh.load_state_dict(own.state_dict())
    own.load_state_dict(fresh.state_dict())
    x, *_ = inputs(device)
    LAUNCHES.clear()
    with backend("triton"):
        for module in (fasttx_module, copy.deepcopy(fasttx_module), pickle.loads(pickle.dumps(fasttx_module))):
            torch.testing.assert_close(module(x), torch_module(x))
        for module in (shared, fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
            torch.testing.assert_close(module(x), torch_module(own(x)), atol=1e-5, rtol=1e-5)
        assert LAUNCHES == {(FWD, "triton"): 7}
        number = torch.arange(10, device=device).view(2, 5)
        torch.manual_seed(1)
        whole = fresh.train()(x, number)
        torch.manual_seed(1)
        flipped = fresh(x.flip(0), number.flip(0))
        assert torch.equal(whole == 0, flipped.flip(0) == 0) and 0.3 < float((whole == 0).double().mean()) < 0.7


def test_what_the_module_refuses():
    with pytest.raises(ValueError, match="^approximate: got 'erf'; allowed is 'none' or 'tanh'$"):
        nn.LinearGELU(3, 4, approximate="erf")
    with pytest.raises(ValueError, match=r"^p: got 1.0; allowed is a number in \[0, 1\)$"):
        nn.LinearGELU(3, 4, p=1.0)
    with pytest.raises(TypeError, match="^linear: got a LinearGELU; allowed is a torch.nn.Linear, and no subclass$"):
        nn.LinearGELU.from_linear(nn.LinearGELU(3, 4))
