"""int8_linear, quantize_per_token, quantize_per_channel and Int8Linear: values, casts, saving, and no gradient."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import fasttx
from fasttx.nn import Int8Linear
from fasttx.nn import functional as F
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.int8_linear.op import INT8_LINEAR
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

BACKENDS = ["torch", "triton"]


def runnable(backend: str) -> None:
    x = torch.ones(2, 2, dtype=torch.int8)
    reason = INT8_LINEAR.reasons(x, x)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def layer(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    return nn.Linear(40, 24, bias=bias, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_linear(dtype: torch.dtype, backend: str) -> None:
    """The arithmetic keeps the accuracy rule; against the float layer the error is that of rounding to 8 bits."""
    runnable(backend)
    linear = layer(dtype)
    x, residual = torch.randn(2, 3, 5, 40).to(dtype), torch.randn(2, 3, 5, 24).to(dtype)
    LAUNCHES.clear()
    with torch.no_grad(), fasttx.backend(backend):
        w_q, w_scale = F.quantize_per_channel(linear.weight)
        out = F.int8_linear(x, w_q, w_scale, linear.bias, activation="gelu", residual=residual)
        x_q, x_scale = F.quantize_per_token(x)
    assert dict(LAUNCHES) == {("quantize_per_token_fwd", backend): 3, ("int8_linear_fwd", backend): 1}
    flat = x_q.view(-1, 40), w_q, x_scale.view(-1), w_scale, linear.bias.detach(), residual.view(-1, 24), "gelu", dtype
    assert_as_accurate(out.view(-1, 24), INT8_LINEAR.fwd.torch(*flat), INT8_LINEAR.fwd.reference(*flat))
    y = x.double() @ linear.weight.double().t() + linear.bias.double()
    want = nn.functional.gelu(y) + residual.double()
    step = x_scale.double().amax() * linear.weight.double().abs().sum(1).amax() / 2
    step = step + w_scale.double().amax() * x.double().abs().sum(-1).amax() / 2
    assert (out.double() - want).abs().max() <= 1.2 * step + 2**-7 * want.abs().max()
    assert (out.double() - want).abs().max() > 0  # the int8 way it was
    assert out.shape == residual.shape and out.dtype == dtype


def test_a_given_scale_of_activations() -> None:
    x, linear = torch.randn(7, 40), layer()
    w_q, w_scale = F.quantize_per_channel(linear.weight)
    x[0, 0], x[1, 0] = 1e9, math.nan
    with torch.no_grad():
        out = F.int8_linear(x, w_q, w_scale, linear.bias, act_scale=0.03)
        same = F.int8_linear(x, w_q, w_scale, linear.bias, act_scale=torch.tensor(0.03))
        x_q = (x[2:] / 0.03).round().clamp(-127, 127)
        want = nn.functional.linear(x_q * 0.03, w_q * w_scale[:, None], linear.bias)
    torch.testing.assert_close(out[2:], want)
    assert torch.equal(out.nan_to_num(5.0), same.nan_to_num(5.0))
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_gradients_are_refused_where_they_are_asked_for() -> None:
    linear = layer()
    int8 = Int8Linear.from_float(linear)
    x = torch.randn(3, 40, requires_grad=True)
    out = int8(x)  # a forward alone is inference, whatever the mode
    with pytest.raises(RuntimeError, match="int8_linear: has no gradient.*fasttx.dequantize"):
        out.sum().backward()
    with torch.no_grad():
        assert torch.equal(int8(x), out) and not int8(x).requires_grad
    q, scale = F.quantize_per_channel(linear.weight)  # a parameter
    assert not q.requires_grad and not scale.requires_grad


def test_autocast_sets_the_dtype_and_rounds_nothing_before() -> None:
    int8, x = Int8Linear.from_float(layer()), torch.randn(3, 40)
    with torch.no_grad():
        want = int8(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = int8(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, want.bfloat16())


def test_compiles_as_one_graph() -> None:
    """Without gradients; a graph that has to have a backward is refused where it is made."""
    int8 = Int8Linear.from_float(layer())
    compiled = torch.compile(int8, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for n in (3, 7):
            x = torch.randn(n, 40)
            assert torch.equal(compiled(x), int8(x))
    with pytest.raises(RuntimeError, match="int8_linear: has no gradient"):
        compiled(torch.randn(3, 40, requires_grad=True))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"input": [1.0]}, TypeError, "input: got a list; allowed is a Tensor"),
        (
            {"input": torch.ones(2, 40).double()},
            ValueError,
            "input: got torch.float64 .*; allowed is float32, float16 or bfloat16",
        ),
        ({"input": torch.ones(2, 41)}, ValueError, r"input: got \(2, 41\); allowed is \(..., 40\)"),
        ({"weight_int8": torch.ones(24, 40)}, ValueError, "weight_int8: got torch.float32 .*; allowed is torch.int8"),
        (
            {"weight_int8": torch.ones(24, dtype=torch.int8)},
            ValueError,
            r"weight_int8: got \(24,\); allowed is \(out_features",
        ),
        ({"weight_scale": torch.ones(40)}, ValueError, r"weight_scale: got \(40,\); allowed is \(24,\)"),
        (
            {"weight_scale": torch.ones(24).half()},
            ValueError,
            "weight_scale: got torch.float16 .*; allowed is torch.float32",
        ),
        ({"bias": torch.ones(23)}, ValueError, r"bias: got \(23,\); allowed is \(24,\)"),
        ({"residual": torch.ones(24, 2)}, ValueError, r"residual: got \(24, 2\); allowed is \(2, 24\)"),
        ({"activation": "relu"}, ValueError, "activation: got 'relu'; allowed is one of 'none', 'gelu', 'gelu_tanh'"),
        ({"act_scale": 0.0}, ValueError, "act_scale: got 0.0; allowed is a positive number"),
        ({"act_scale": math.nan}, ValueError, "act_scale: got nan; allowed is a positive number"),
        ({"act_scale": "x"}, TypeError, "act_scale: got 'x'; allowed is a positive number"),
        (
            {"act_scale": torch.ones(2)},
            ValueError,
            r"act_scale: got torch.float32 \(2,\); allowed is a positive number or float32 \(\)",
        ),
        ({"input": torch.ones(2, 40, device="meta")}, ValueError, "int8_linear: input: got a meta tensor"),
    ],
    ids=str,
)
def test_refusals(change: dict[str, object], error: type[Exception], message: str) -> None:
    w_q, w_scale = F.quantize_per_channel(layer().weight)
    arguments = {"input": torch.ones(2, 40), "weight_int8": w_q, "weight_scale": w_scale} | change
    with pytest.raises(error, match=message):
        F.int8_linear(**arguments)


def test_refusals_of_the_quantisers() -> None:
    for function in (F.quantize_per_token, F.quantize_per_channel):
        with pytest.raises(TypeError, match="^(input|weight): got a float; allowed is a Tensor$"):
            function(1.0)
        with pytest.raises(
            ValueError, match="^(input|weight): got torch.int32 .*; allowed is float32, float16 or bfloat16$"
        ):
            function(torch.ones(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="^input: got a tensor without dims; allowed is one of at least one dim$"):
        F.quantize_per_token(torch.ones(()))
    with pytest.raises(ValueError, match=r"^weight: got \(2, 2, 2\); allowed is \(out_features, in_features\)$"):
        F.quantize_per_channel(torch.ones(2, 2, 2))


# ------------------------------------------------------------------------------------------------------------ module


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.type(torch.float16),
        lambda m: m.double().float(),
    ],
)
def test_casts_leave_integers_and_scales(cast) -> None:
    int8 = Int8Linear.from_float(layer())
    before, bias = {name: buffer.clone() for name, buffer in int8.named_buffers()}, int8.bias.detach().clone()
    cast(int8)
    for name in ("weight", "weight_scale"):
        assert torch.equal(getattr(int8, name), before[name]) and getattr(int8, name).dtype == before[name].dtype
    torch.testing.assert_close(int8.bias.detach().float(), bias, rtol=1e-2, atol=1e-2)
    x = torch.randn(2, 40, dtype=int8.bias.dtype)
    assert int8(x).dtype == x.dtype


def test_a_state_dict_is_none_of_a_float_layer_and_the_buffers_load_too() -> None:
    int8 = Int8Linear.from_float(layer())
    state = int8.state_dict()
    assert state["weight"].shape == (24, 1, 40) and state["weight_scale"].dtype == torch.int32
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        torch.nn.Linear(40, 24).load_state_dict(state, strict=False)
    for assign in (False, True):
        for given in (state, dict(int8.named_buffers()) | {"bias": int8.bias}):
            fresh = Int8Linear(40, 24)
            fresh.load_state_dict(given, assign=assign)
            assert torch.equal(fresh.weight, int8.weight) and torch.equal(fresh.weight_scale, int8.weight_scale)


def test_from_float_and_back() -> None:
    for dtype in DTYPES:
        linear = layer(dtype).eval()
        int8 = Int8Linear.from_float(linear)
        assert int8.bias is linear.bias and not int8.training
        again = int8.dequantize()
        assert type(again) is nn.Linear and again.bias is linear.bias and not again.training
        assert again.weight.dtype == dtype and again.weight.requires_grad
        step = int8.weight_scale[:, None]
        error = (again.weight.detach().float() - linear.weight.detach().float()).abs()
        assert bool((error <= step / 2 * 1.001 + 2.0**-8 * linear.weight.detach().float().abs()).all())
        twice = Int8Linear.from_float(int8.dequantize(torch.float32))
        assert torch.equal(twice.weight, int8.weight)
    bare = Int8Linear.from_float(layer(torch.float16, bias=False))
    assert bare.bias is None and bare.dequantize().bias is None
    assert bare.dequantize().weight.dtype == torch.float32 and bare.dequantize(torch.float16).weight.dtype == (
        torch.float16
    )
    broken = layer()
    broken.weight.data[3, 3] = math.nan
    with pytest.raises(
        ValueError, match="^linear: got a weight that holds a NaN or an infinity; allowed is one of finite numbers$"
    ):
        Int8Linear.from_float(broken)


def test_saved_and_loaded(tmp_path) -> None:
    int8, x = Int8Linear.from_float(layer()), torch.randn(3, 40)
    want = int8(x)
    assert set(int8.state_dict()) == {"weight", "weight_scale", "bias"}
    assert torch.equal(copy.deepcopy(int8)(x), want) and torch.equal(pickle.loads(pickle.dumps(int8))(x), want)
    file = io.BytesIO()
    torch.save(int8.state_dict(), file)
    file.seek(0)
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    safetensors.save_file(int8.state_dict(), tmp_path / "int8.safetensors")
    for saved in (torch.load(file), safetensors.load_file(tmp_path / "int8.safetensors")):
        for assign in (False, True):
            fresh = Int8Linear(40, 24)
            fresh.load_state_dict(saved, assign=assign)
            assert torch.equal(fresh(x), want) and fresh.weight.dtype == torch.int8


@pytest.mark.parametrize("assign", [False, True])
def test_the_weights_of_a_float_layer_are_not_cut_down_to_integers(assign: bool) -> None:
    fresh = Int8Linear(40, 24)
    before = state(fresh)
    with pytest.raises(RuntimeError, match=r"weight: got torch.float32; allowed is torch.int8: load float weights"):
        fresh.load_state_dict(layer().state_dict(), strict=False, assign=assign)
    assert all(torch.equal(t, before[name]) for name, t in fresh.state_dict().items())


def test_repr_and_a_new_module() -> None:
    fresh = Int8Linear(40, 24, bias=False, dtype=torch.float16)
    assert repr(fresh) == "Int8Linear(in_features=40, out_features=24, bias=False)"
    assert not fresh(torch.randn(2, 40)).any() and fresh.weight_scale.dtype == torch.float32
    assert Int8Linear(4, 2, dtype=torch.float16).bias.dtype == torch.float16
    assert Int8Linear(4, 2, device="meta").weight.is_meta
