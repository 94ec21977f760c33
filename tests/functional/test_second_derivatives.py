"""Second derivatives on a CPU, whose flash kernel PyTorch cannot differentiate twice: of every route a call may take.

Truth is attention by products and a softmax in float64, differentiated by PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fasttx
import fasttx.nn as nn
from fasttx.functional import attention_varlen, scaled_dot_product_attention
from fasttx.functional.attention.layouts import attention_padded
from fasttx.ops.attention.masks import with_infinities

BATCH, HEADS, ROWS, DIM = 2, 4, 6, 8
KEYS = (torch.arange(ROWS) < torch.tensor([ROWS, 3])[:, None])[:, None, None]
PAIRS = torch.rand(BATCH, 1, ROWS, ROWS, generator=torch.Generator().manual_seed(1)) > 0.3
ADDED = torch.zeros(PAIRS.shape).masked_fill(~PAIRS, float("-inf"))
LOWEST = torch.zeros(KEYS.shape).masked_fill(~KEYS, torch.finfo(torch.float32).min)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
    "mask of keys": {"attn_mask": KEYS},
    "mask of no key": {"attn_mask": torch.ones_like(KEYS)},
    "row without keys": {"attn_mask": KEYS & (torch.arange(BATCH) < 1)[:, None, None, None]},
    "mask of pairs": {"attn_mask": PAIRS},
    "mask of two dims": {"attn_mask": PAIRS[0, 0]},
    "added": {"attn_mask": ADDED},
    "lowest number": {"attn_mask": LOWEST},
}


def _inputs(dtype: torch.dtype = torch.float32, heads_k: int = HEADS) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(BATCH, h, ROWS, DIM).to(dtype).requires_grad_() for h in (HEADS, heads_k, heads_k)]


def _truth(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = with_infinities(attn_mask).double()
    with sdpa_kernel(SDPBackend.MATH):
        return torch_functional.scaled_dot_product_attention(q, k, v, attn_mask, enable_gqa=True, **options)


def _orders(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """First and second derivatives of a number that hangs on all of the output."""
    out = function(*inputs)
    weights = torch.linspace(-1.0, 2.0, out.numel()).view(out.shape).to(out.dtype)
    first = torch.autograd.grad((out * weights).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((x.sin() * x).sum() for x in first), inputs)
    return [*first, *second]


def _compare(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=10 * tolerance, atol=tolerance * float(b.abs().max() + 1))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("form", FORMS)
def test_of_the_drop_in(form: str, backend: str) -> None:
    wide = [x.detach().double().requires_grad_() for x in _inputs()]
    want = _orders(lambda *x: _truth(*x, **FORMS[form]), wide)
    with fasttx.backend(backend):
        _compare(_orders(lambda *x: scaled_dot_product_attention(*x, **FORMS[form]), _inputs()), want)


@pytest.mark.parametrize("form", FORMS)
def test_of_the_model_layers_call(form: str) -> None:
    """Heads last but one, and what a patched model asks for."""
    options = dict(FORMS[form])
    mask = options.pop("attn_mask", None)
    call = {
        "attn_bias": mask if mask is None or mask.dim() == 4 else mask[None, None],
        "window": (-1, 0 if options.get("is_causal") else -1),
        "softmax_scale": options.get("scale"),
    }

    def padded(*x: Tensor) -> Tensor:
        return attention_padded(*(t.transpose(1, 2) for t in x), **call).transpose(1, 2)

    wide = [x.detach().double().requires_grad_() for x in _inputs()]
    want = _orders(lambda *x: _truth(*x, **FORMS[form]), wide)
    _compare(_orders(padded, _inputs()), want)
    _compare(_orders(padded, wide), want, 1e-10)  # torch's own function


@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck_in_float64(form: str) -> None:
    inputs = [x[:, :2, :, :3].detach().requires_grad_() for x in _inputs(torch.float64)]
    options = {k: v.double() if k == "attn_mask" and v.is_floating_point() else v for k, v in FORMS[form].items()}
    torch.autograd.gradgradcheck(lambda *x: scaled_dot_product_attention(*x, **options), inputs)


@pytest.mark.parametrize("form", ["plain", "causal", "mask of pairs", "added"])
def test_of_torch_func(form: str) -> None:
    def of(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def loss(*x: Tensor) -> Tensor:
            return (function(*x, **FORMS[form]).sin()).sum()

        def again(*x: Tensor) -> Tensor:
            return sum(((g.sin() * g).sum() for g in torch.func.grad(loss, (0, 1, 2))(*x)), torch.zeros(()))

        return torch.func.grad(again, (0, 1, 2))

    inputs = [x.detach() for x in _inputs()]
    want = of(_truth)(*(x.double() for x in inputs))
    _compare(list(of(scaled_dot_product_attention)(*inputs)), list(want))
    primal, tangent = inputs[0], inputs[1]
    along = torch.func.jvp(lambda q: scaled_dot_product_attention(q, *inputs[1:], **FORMS[form]), (primal,), (tangent,))
    wide = [x.double() for x in inputs]
    right = torch.func.jvp(lambda q: _truth(q, *wide[1:], **FORMS[form]), (wide[0],), (wide[1],))
    _compare(list(along), list(right))


def test_of_fewer_heads_of_keys_and_of_one_tensor_given_thrice() -> None:
    for heads, backend in ((2, "auto"), (2, "torch"), (1, "auto")):
        wide = [x.detach().double().requires_grad_() for x in _inputs(heads_k=heads)]
        with fasttx.backend(backend):
            got = _orders(lambda *x: scaled_dot_product_attention(*x, enable_gqa=True), _inputs(heads_k=heads))
        _compare(got, _orders(_truth, wide))
    x = _inputs()[:1]
    wide = [x[0].detach().double().requires_grad_()]
    _compare(_orders(lambda x: scaled_dot_product_attention(x, x, x), x), _orders(lambda x: _truth(x, x, x), wide))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_of_half_precision_and_autocast(dtype: torch.dtype) -> None:
    half = _inputs(dtype)
    got = _orders(scaled_dot_product_attention, half)
    _compare(got, _orders(_truth, [x.detach().double().requires_grad_() for x in half]), 0.05)
    with torch.autocast("cpu", dtype=dtype):
        got = _orders(scaled_dot_product_attention, _inputs())
    assert {x.dtype for x in got} == {torch.float32}
    _compare(got, _orders(_truth, [x.detach().double().requires_grad_() for x in _inputs()]), 0.05)


@pytest.mark.parametrize("causal", [False, True])
def test_of_packed_sequences(causal: bool) -> None:
    starts = torch.tensor([0, 6, 9], dtype=torch.int32)
    torch.manual_seed(0)
    inputs = [torch.randn(9, HEADS, DIM, requires_grad=True) for _ in range(3)]

    def packed(*x: Tensor) -> Tensor:
        return attention_varlen(*x, starts, starts, 6, 6, is_causal=causal)

    def apart(*x: Tensor) -> Tensor:
        pieces = [[t[a:b].transpose(0, 1)[None] for t in x] for a, b in ((0, 6), (6, 9))]
        return torch.cat([_truth(*piece, is_causal=causal)[0].transpose(0, 1) for piece in pieces])

    wide = [x.detach().double().requires_grad_() for x in inputs]
    want = _orders(apart, wide)
    _compare(_orders(packed, inputs), want)

    def twice(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def first(*x: Tensor) -> Tensor:
            return sum(g.square().sum() for g in torch.func.grad(lambda *y: function(*y).sin().sum(), (0, 1, 2))(*x))

        return torch.func.grad(first, (0, 1, 2))

    _compare(list(twice(packed)(*(x.detach() for x in inputs))), list(twice(apart)(*(x.detach() for x in wide))))


def test_first_derivatives_stay_those_of_torch() -> None:
    for options in FORMS.values():
        if options.get("attn_mask") is None or options["attn_mask"].dtype == torch.bool:
            found = []
            for function in (scaled_dot_product_attention, torch_functional.scaled_dot_product_attention):
                inputs = _inputs()
                out = function(*inputs, **options)
                found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
            for got, want in zip(*found, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


MODULES: dict[str, tuple[Callable[[Any], torch.nn.Module], dict[str, Any]]] = {
    "MultiheadAttention": (lambda nn: nn.MultiheadAttention(16, 2, batch_first=True), {"need_weights": False}),
    "with weights": (lambda nn: nn.MultiheadAttention(16, 2, batch_first=True), {"need_weights": True}),
    "layer": (lambda nn: nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True), {}),
    "layer, norm first": (
        lambda nn: nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True),
        {},
    ),
    "encoder": (
        lambda nn: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True), 2),
        {},
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", MODULES)
def test_of_modules(case: str, dtype: torch.dtype, padded: bool) -> None:
    make, options = MODULES[case]
    torch.manual_seed(0)
    module, x = make(nn).to(dtype), torch.randn(2, 5, 16).to(dtype)
    plain = make(torch.nn).double()
    plain.load_state_dict(module.state_dict())
    hidden = torch.tensor([[False] * 5, [False, False, False, True, True]]) if padded else None

    def call(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            if isinstance(module, torch.nn.MultiheadAttention):
                return module(x, x, x, key_padding_mask=hidden, **options)[0]
            return module(x, src_key_padding_mask=hidden)

        return run

    with sdpa_kernel(SDPBackend.MATH):
        want = _orders(call(plain), [x.double().requires_grad_()])
    got = _orders(call(module), [x.clone().requires_grad_()])
    _compare(got, want, 1e-4 if dtype == torch.float32 else 1e-9)


# ------------------------------------------------------------------------------- inputs that are computed from another


def _of_residual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    residual = x.sin() * bias
    return fasttx.functional.dropout_add_layer_norm(residual * residual, residual, weight, bias, training=False)


def _of_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    added = bias.cos() * weight
    return fasttx.functional.linear_gelu(x, torch.outer(added, weight), added)


def _of_tied_weight(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    table = x * weight
    target = torch.arange(len(x)) % len(table)
    return fasttx.functional.linear_cross_entropy(table.sin() + bias, table, target)


@pytest.mark.parametrize("function", [_of_residual, _of_bias, _of_tied_weight])
def test_of_inputs_that_are_computed_from_another(function: Callable[..., Tensor]) -> None:
    """In a sublayer what is normalised comes from the residual, and a head may be tied to the embeddings."""
    torch.manual_seed(0)
    inputs = [torch.randn(6, 8, requires_grad=True), *(torch.randn(8, requires_grad=True) for _ in range(2))]
    want = _orders(function, [x.detach().double().requires_grad_() for x in inputs])
    with fasttx.backend("torch"):
        _compare(_orders(function, inputs), want)
