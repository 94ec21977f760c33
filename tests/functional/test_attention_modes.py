"""Attention under torch's modes: transforms, double backward, autocast, checkpointing, compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from functional.beside_torch import OP, both, packed, torch_attention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fasttx
from fasttx.functional import attention_varlen, scaled_dot_product_attention
from fasttx.functional.attention.layouts import attention_padded
from fasttx.ops.registry import LAUNCHES


def test_float64_subclasses_transforms_and_mask_gradients() -> None:
    x = torch.randn(2, 3, 5, 8)
    assert scaled_dot_product_attention(*(x.double(),) * 3).dtype == torch.float64

    class Sub(torch.Tensor):
        pass

    assert type(scaled_dot_product_attention(*(x.as_subclass(Sub),) * 3)) is Sub
    with fasttx.backend("torch"):
        got = torch.func.vmap(scaled_dot_product_attention)(x, x, x)
        torch.testing.assert_close(got, torch_attention(x, x, x), rtol=1e-5, atol=1e-5)
        grad = torch.func.grad(lambda q: scaled_dot_product_attention(q, x, x).square().sum())(x)
        assert grad.shape == x.shape
        mask = torch.randn(5, 5, requires_grad=True)
        for f in (scaled_dot_product_attention, torch_attention):
            f(x, x, x, mask).square().sum().backward()
        assert mask.grad is not None and mask.grad.any()
        bias = torch.randn(1, 3, 5, 5, requires_grad=True)
        attention_padded(x, x, x, attn_bias=torch.randn(1, 5, 3, 3, requires_grad=True)).sum().backward()
        xs = x.transpose(1, 2)
        attention_padded(xs, xs, xs, attn_bias=bias).square().sum().backward()
        assert bias.grad is not None and bias.grad.any()
    with torch.autograd.forward_ad.dual_level(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(scaled_dot_product_attention(dual, x, x)).tangent
        assert tangent is not None


def test_nested_tensors() -> None:
    x = torch.nested.nested_tensor([torch.randn(n, 2, 8) for n in (3, 5)], layout=torch.jagged).transpose(1, 2)
    got, want = scaled_dot_product_attention(x, x, x), torch_attention(x, x, x)
    torch.testing.assert_close(got.transpose(1, 2).values(), want.transpose(1, 2).values())


def test_double_backward() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))

    def second(function: Callable[..., Tensor], *x: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), x)

    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = second(lambda *x: torch_attention(*x, is_causal=True), *wide)
    with fasttx.backend("torch"):
        for got, want in zip(
            second(lambda *x: scaled_dot_product_attention(*x, is_causal=True), q, k, v), wanted, strict=True
        ):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
        out = scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        torch.testing.assert_close(
            torch.autograd.grad(out.sum(), q, create_graph=True), torch.autograd.grad(out.sum(), q)
        )


def test_autocast_casts_and_gives_gradients_in_the_inputs_dtype() -> None:
    q, k, v = (torch.randn(2, 3, 9, 16, requires_grad=True) for _ in range(3))
    for forced in OP:
        with fasttx.backend(forced), torch.autocast("cpu", dtype=torch.bfloat16):
            for mask in (None, torch.randn(9, 9)):
                out = scaled_dot_product_attention(q, k, v, mask)
                assert out.dtype == torch_attention(q, k, v, mask).dtype == torch.bfloat16
            assert attention_padded(q, k, v).dtype == torch.bfloat16
            dq = torch.autograd.grad(out.float().sum(), q)[0]
        assert dq.dtype == torch.float32


def test_dropout_follows_the_seed_and_its_rate() -> None:
    q, k = (torch.randn(4, 4, 64, 16) for _ in range(2))
    v = torch.eye(64).expand(4, 4, 64, 64)
    with fasttx.backend("torch"):
        torch.manual_seed(3)
        a, b = (scaled_dot_product_attention(q, k, v, dropout_p=0.25) for _ in range(2))
        torch.manual_seed(3)
        c = scaled_dot_product_attention(q, k, v, dropout_p=0.25)
    assert torch.equal(a, c) and not torch.equal(a, b)
    assert abs(float((a == 0).double().mean()) - 0.25) < 0.01
    assert float(a.mean()) == pytest.approx(1 / 64, rel=0.02)


def test_backward_runs_where_forward_ran() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    with fasttx.backend("torch"):
        out = scaled_dot_product_attention(q, q, q)
    before = LAUNCHES["attention_bwd", "torch"]
    out.sum().backward()  # an expanded dout, of stride 0
    assert LAUNCHES["attention_bwd", "torch"] == before + 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_draws_the_same_dropout(reentrant: bool) -> None:
    q, k, v = (torch.randn(2, 4, 16, 16, requires_grad=True) for _ in range(3))

    def layer(*x: Tensor) -> Tensor:
        return scaled_dot_product_attention(*x, dropout_p=0.3)

    with fasttx.backend("torch"):
        grads = []
        for run in (layer, lambda *x: checkpoint(layer, *x, use_reentrant=reentrant)):
            torch.manual_seed(5)
            for x in (q, k, v):
                x.grad = None
            run(q, k, v).square().sum().backward()
            grads.append([x.grad for x in (q, k, v)])
    for a, b in zip(*grads, strict=True):
        assert a is not None and torch.equal(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole_with_dynamic_shapes(backend: str) -> None:
    torch._dynamo.reset()

    def step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        a = scaled_dot_product_attention(q, k, v, mask)
        b = attention_padded(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=mask)
        return a + b.transpose(1, 2)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    with fasttx.backend("torch"):
        for n in (7, 12):
            inputs = tuple(torch.randn(2, n, 3, 16).transpose(1, 2) for _ in range(3))
            mask = torch.arange(n).view(1, 1, 1, n) < 5
            for got, want in both(inputs, lambda *x, m=mask: compiled(*x, m), lambda *x, m=mask: step(*x, m)):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_compiled_dropout_and_packed_call_have_right_gradients() -> None:
    torch._dynamo.reset()
    (q, cu), (k, _) = packed(5, 9), packed(5, 9)
    v = torch.randn(14, 3, 16, requires_grad=True)

    def step(v: Tensor) -> Tensor:
        return attention_varlen(q, k, v, cu, cu, 9, 9, dropout_p=0.4)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.compile(lambda x: attention_padded(x, x, x, dropout_p=0.4), fullgraph=True, backend="aot_eager")(
        v[None]
    )  # one tensor thrice
    for _ in range(2):
        out = compiled(v)
        (dv,) = torch.autograd.grad(out, v, torch.ones_like(out))
        # out is linear in v: the gradient, taken with the mask that forward drew, gives back the sum of out
        assert float((dv * v).detach().sum()) == pytest.approx(float(out.detach().sum()), rel=1e-3, abs=1e-3)
