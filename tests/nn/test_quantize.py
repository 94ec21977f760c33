"""Quantising inside layer norm and GELU, with a given scale, and int8 rows into int8_linear: alone and as a chain."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import fasttx
from fasttx.nn import functional as F
from fasttx.ops.backends import BackendError
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.int8_linear.op import INT8_LINEAR
from fasttx.ops.quantize_per_token.op import QUANTIZE_PER_TOKEN
from fasttx.ops.registry import LAUNCHES

FP32, FP16, BF16 = DTYPES
BACKENDS = ["torch", "triton", "cuda"]
N, HIDDEN = 40, 72


def runnable(backend: str, device: torch.device) -> None:
    reason = QUANTIZE_PER_TOKEN.reasons(torch.ones(2, 2, device=device))[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


class Weights:
    """Of a layer norm and of an MLP on int8."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(dtype)

        self.x, self.residual = randn(3, 7, N), randn(3, 7, N)
        self.weight, self.bias = randn(N) + 1.0, randn(N)
        self.up, self.up_bias = F.quantize_per_channel(randn(HIDDEN, N)), randn(HIDDEN)
        self.down, self.down_bias = F.quantize_per_channel(randn(N, HIDDEN)), randn(N)
        self.dtype = dtype

    def fused(self, products: str, scales: tuple[float | None, float | None], approximate: str) -> Tensor:
        out, x_q, x_scale = F.add_layer_norm_quantize(
            self.x, self.residual, self.weight, self.bias, eps=1e-12, scale=scales[0]
        )
        with fasttx.backend(products):
            y = F.int8_linear(x_q, *self.up, self.up_bias, act_scale=x_scale, out_dtype=self.dtype)
        y_q, y_scale = F.gelu_quantize(y, approximate=approximate, scale=scales[1])
        with fasttx.backend(products):
            return F.int8_linear(y_q, *self.down, self.down_bias, act_scale=y_scale, residual=out, out_dtype=self.dtype)

    def unfused(self, products: str, scales: tuple[float | None, float | None], approximate: str) -> Tensor:
        out = F.dropout_add_layer_norm(self.x, self.residual, self.weight, self.bias, eps=1e-12)
        x_q, x_scale = F.quantize_per_token(out) if scales[0] is None else F.quantize_static(out, scales[0])
        with fasttx.backend(products):
            y = F.int8_linear(x_q, *self.up, self.up_bias, act_scale=x_scale, out_dtype=self.dtype)
        y = F.gelu(y, approximate=approximate)
        y_q, y_scale = F.quantize_per_token(y) if scales[1] is None else F.quantize_static(y, scales[1])
        with fasttx.backend(products):
            return F.int8_linear(y_q, *self.down, self.down_bias, act_scale=y_scale, residual=out, out_dtype=self.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scales, approximate", [((None, None), "none"), ((0.03, 0.05), "tanh")], ids=["own", "given"])
def test_a_fused_chain_has_the_bits_of_its_functions(device, scales, approximate, dtype, backend: str) -> None:
    """The product has no kernel in CUDA C++: beside that backend it is Triton's, or PyTorch's where there is none."""
    runnable(backend, device)
    ones = torch.ones(2, 2, dtype=torch.int8, device=device)
    able = INT8_LINEAR.reasons(ones, ones)
    products = next(b for b in (backend, "triton", "torch") if able[b] is None)
    weights = Weights(dtype, device)
    with torch.no_grad(), fasttx.backend(backend):
        LAUNCHES.clear()
        found = weights.fused(products, scales, approximate)
        assert dict(LAUNCHES) == {
            ("add_layer_norm_quantize_fwd", backend): 1,
            ("bias_gelu_quantize_fwd", backend): 1,
            ("int8_linear_fwd", products): 2,
        }
        expected = weights.unfused(products, scales, approximate)
    assert found.dtype == dtype and torch.equal(found, expected)


def test_int8_rows_give_what_their_floats_give(device) -> None:
    weights = Weights(FP32, device)
    x = weights.x
    with torch.no_grad():
        expected = F.int8_linear(x, *weights.up, weights.up_bias, activation="gelu")
        x_q, x_scale = F.quantize_per_token(x)
        same = {"activation": "gelu", "out_dtype": FP32}
        assert torch.equal(F.int8_linear(x_q, *weights.up, weights.up_bias, act_scale=x_scale, **same), expected)
        expected = F.int8_linear(x, *weights.up, weights.up_bias, act_scale=0.03, activation="gelu")
        x_q, x_scale = F.quantize_static(x, 0.03)
        assert bool((x_scale == torch.tensor(0.03, device=device)).all())
        for scale in (x_scale, torch.tensor(0.03, device=device), 0.03):
            assert torch.equal(F.int8_linear(x_q, *weights.up, weights.up_bias, act_scale=scale, **same), expected)
        one = F.int8_linear(x_q[0, 0], *weights.up, act_scale=x_scale[0, 0], out_dtype=BF16)
        assert one.shape == (HIDDEN,) and one.dtype == BF16
        x_scale[1, 2] = math.nan  # of a token that held one
        out = F.int8_linear(x_q, *weights.up, act_scale=x_scale, out_dtype=FP32)
        assert out.isnan().any(-1).nonzero().tolist() == [[1, 2]]
        assert F.int8_linear(x_q[:0], *weights.up, act_scale=x_scale[:0], out_dtype=FP16).shape == (0, 7, HIDDEN)


def test_the_dtype_of_the_result(device) -> None:
    weights = Weights(FP32, device)
    x_q, x_scale = F.quantize_per_token(weights.x)
    kind = device.type
    with torch.no_grad():
        assert F.int8_linear(weights.x, *weights.up, out_dtype=FP16).dtype == FP16
        with torch.autocast(kind, BF16):
            assert F.int8_linear(x_q, *weights.up, act_scale=x_scale).dtype == BF16
            assert F.int8_linear(x_q, *weights.up, act_scale=x_scale, out_dtype=FP32).dtype == FP32
            out, _, _ = F.add_layer_norm_quantize(weights.x.to(BF16), None, None, None)
            assert out.dtype == (BF16 if kind == "cpu" else FP32)
    out, _, _ = F.add_layer_norm_quantize(weights.x.to(BF16), weights.residual, None, None)
    assert out.dtype == FP32


def test_a_float_bias_beside_halves_is_not_rounded(device) -> None:
    x, bias = torch.randn(5, 64, device=device).to(BF16), torch.randn(64, device=device)
    with torch.no_grad():
        for approximate in ("none", "tanh"):
            found = F.gelu_quantize(x, bias, approximate=approximate)
            y = torch.nn.functional.gelu(x.float() + bias, approximate=approximate).to(BF16)
            for actual, expected in zip(found, F.quantize_per_token(y)):
                torch.testing.assert_close(actual.float(), expected.float(), rtol=0.01, atol=1.0)


def test_gradients_are_refused_where_they_are_asked_for(device) -> None:
    weights = Weights(FP32, device)
    x = weights.x.requires_grad_()
    out, x_q, x_scale = F.add_layer_norm_quantize(x, None, weights.weight, None)  # a forward alone is inference
    assert not x_q.requires_grad and not x_scale.requires_grad
    with pytest.raises(RuntimeError, match="add_layer_norm_quantize: has no gradient.*fasttx.dequantize"):
        out.sum().backward()
    with torch.no_grad():
        assert torch.equal(F.add_layer_norm_quantize(x, None, weights.weight, None)[0], out)
    bias = torch.randn(N, device=device, requires_grad=True)
    for found in (F.gelu_quantize(x, bias), F.quantize_static(x, 0.1)):
        assert not any(t.requires_grad for t in found)
    y = F.int8_linear(
        x_q,
        *weights.up,
        act_scale=x_scale,
        residual=torch.ones(3, 7, HIDDEN, device=device, requires_grad=True),
        out_dtype=FP32,
    )
    with pytest.raises(RuntimeError, match="int8_linear: has no gradient"):
        y.sum().backward()


def test_scales_get_no_gradient_in_silence(device) -> None:
    weights, scale = Weights(FP32, device), torch.tensor(0.02, device=device, requires_grad=True)
    x = weights.x
    for found in (F.gelu_quantize(x, scale=scale), F.quantize_static(x, scale)):
        assert not any(t.requires_grad for t in found)
    out, x_q, x_scale = F.add_layer_norm_quantize(x, None, weights.weight, None, scale=scale)
    assert not x_q.requires_grad and not x_scale.requires_grad
    with pytest.raises(RuntimeError, match="add_layer_norm_quantize: has no gradient"):
        out.sum().backward()
    w_q, w_scale = weights.up[:2]
    for given, options in (
        ((x, w_q, w_scale), {"act_scale": scale}),
        ((x, w_q, w_scale.clone().requires_grad_()), {}),
        ((x_q, w_q, w_scale), {"act_scale": x_scale.clone().requires_grad_(), "out_dtype": FP32}),
    ):
        with pytest.raises(RuntimeError, match="int8_linear: has no gradient"):
            F.int8_linear(*given, **options).sum().backward()


@pytest.mark.parametrize("scale", [1e39, 1e-46, 1e-39], ids=str)
def test_scales_that_float32_has_not(device, scale) -> None:
    allowed = "a positive number that float32 holds, 1.2e-38 to 3.4e+38"
    with pytest.raises(ValueError, match=re.escape(f"scale: got {scale}; allowed is {allowed}")):
        F.quantize_static(torch.ones(2, 8, device=device), scale)


def test_compiles_as_one_graph(device) -> None:
    weights = Weights(FP32, device)

    def chain(x: Tensor) -> tuple[Tensor, ...]:
        out, x_q, x_scale = F.add_layer_norm_quantize(x, None, weights.weight, weights.bias)
        y = F.int8_linear(x_q, *weights.up, weights.up_bias, act_scale=x_scale, out_dtype=FP32)
        return out, *F.gelu_quantize(y, scale=0.02), *F.quantize_static(y, 0.5)

    compiled = torch.compile(chain, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for n in (3, 7):
            x = torch.randn(n, N, device=device)
            assert all(torch.equal(a, b) for a, b in zip(compiled(x), chain(x)))
    with pytest.raises(RuntimeError, match="add_layer_norm_quantize: has no gradient"):
        compiled(torch.randn(3, N, device=device, requires_grad=True))


def test_a_forced_backend_that_cannot_run_is_an_error() -> None:
    x = torch.randn(2, 16385)
    for backend in ("triton", "cuda"):
        with fasttx.backend(backend):
            for call in (lambda: F.gelu_quantize(x), lambda: F.add_layer_norm_quantize(x, None, None, None)):
                with pytest.raises(BackendError, match=f"backend '{backend}' cannot run this call"):
                    call()


ONES = torch.ones(2, 40)
static, norm, gelu = F.quantize_static, F.add_layer_norm_quantize, F.gelu_quantize


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: static(1.0, 0.1), TypeError, "input: got a float; allowed is a Tensor"),
        (
            lambda: static(ONES[0, 0], 0.1),
            ValueError,
            "input: got a tensor without dims; allowed is one of at least one dim",
        ),
        (lambda: static(ONES, 0.0), ValueError, "scale: got 0.0; allowed is a positive number"),
        (lambda: static(ONES, None), TypeError, r"scale: got None; allowed is a positive number or float32 \(\)"),
        (lambda: static(ONES, True), TypeError, r"scale: got True; allowed is a positive number or float32 \(\)"),
        (lambda: static(ONES, ONES[0]), ValueError, r"scale: got torch.float32 \(40,\); allowed is .* or float32 \(\)"),
        (lambda: static(ONES.to("meta"), 0.1), ValueError, "quantize_static: input: got a meta tensor"),
        (lambda: norm(ONES.double(), None, None, None), ValueError, "input: got torch.float64 .*; allowed is float32"),
        (lambda: norm(ONES[:, :0], None, None, None), ValueError, "input: got .*; allowed is rows of at least one"),
        (lambda: norm(ONES, ONES[0], None, None), ValueError, r"residual: got \(40,\); allowed is \(2, 40\)"),
        (lambda: norm(ONES, None, ONES, None), ValueError, r"weight: got \(2, 40\); allowed is \(40,\)"),
        (lambda: norm(ONES, None, None, 1.0), TypeError, "bias: got a float; allowed is a Tensor"),
        (
            lambda: norm(ONES, None, None, None, eps=-1.0),
            ValueError,
            "eps: got -1.0; allowed is a finite number, not negative",
        ),
        (lambda: norm(ONES, None, None, None, scale="x"), TypeError, "scale: got 'x'; allowed is a positive number"),
        (lambda: norm(ONES.to("meta"), None, None, None), ValueError, "add_layer_norm_quantize: input: got a meta"),
        (lambda: gelu(ONES, ONES), ValueError, r"bias: got \(2, 40\); allowed is \(40,\)"),
        (lambda: gelu(ONES, ONES[0].half()), ValueError, "bias: got torch.float16; allowed is torch.float32, as"),
        (lambda: gelu(ONES, approximate="erf"), ValueError, "approximate: got 'erf'; allowed is 'none' or 'tanh'"),
        (lambda: gelu(ONES, scale=math.inf), ValueError, "scale: got inf; allowed is a positive number"),
        (lambda: gelu(ONES.to("meta")), ValueError, "gelu_quantize: input: got a meta tensor"),
    ],
)
def test_refusals(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"act_scale": None}, ValueError, "act_scale: got None; allowed is the scales of an int8 input"),
        ({"act_scale": torch.ones(3)}, ValueError, r"act_scale: got .* \(3,\); allowed is float32 \(2,\) or \(\)"),
        (
            {"act_scale": torch.ones(2).half()},
            ValueError,
            r"act_scale: got torch.float16 .*; allowed is float32 \(2,\) or \(\)",
        ),
        ({"act_scale": -1.0}, ValueError, "act_scale: got -1.0; allowed is a positive number"),
        ({"act_scale": "x"}, TypeError, "act_scale: got 'x'; allowed is a positive number"),
        ({"out_dtype": None}, ValueError, "out_dtype: got None; allowed is .* for an int8 input outside of autocast"),
        (
            {"out_dtype": torch.float64},
            ValueError,
            "out_dtype: got torch.float64; allowed is float32, float16 or bfloat16",
        ),
        ({"out_dtype": "float32"}, ValueError, "out_dtype: got 'float32'; allowed is float32, float16 or bfloat16"),
        (
            {"input": torch.ones(2, 40, dtype=torch.uint8)},
            ValueError,
            "input: got torch.uint8 .*; allowed is float32, float16",
        ),
        ({"input": torch.ones(2, 41, dtype=torch.int8)}, ValueError, r"input: got \(2, 41\); allowed is \(..., 40\)"),
    ],
    ids=str,
)
def test_refusals_of_int8_rows(change, error: type[Exception], message: str) -> None:
    w_q, w_scale = F.quantize_per_channel(torch.randn(24, 40))
    x_q, x_scale = F.quantize_per_token(ONES)
    arguments = {"input": x_q, "act_scale": x_scale, "out_dtype": FP32} | change
    with pytest.raises(error, match=message):
        F.int8_linear(arguments.pop("input"), w_q, w_scale, **arguments)
