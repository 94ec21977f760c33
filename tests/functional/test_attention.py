"""The attention functions against torch's own: results, gradients, errors, transforms, compilation, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fasttx
from fasttx.functional import attention_varlen, scaled_dot_product_attention
from fasttx.functional.attention import attention
from fasttx.ops.registry import LAUNCHES, new_rng_state
from fasttx.testing import assert_as_accurate

torch_attention = torch_functional.scaled_dot_product_attention
OP: tuple[str, ...] = ("auto", "torch")
"""auto leaves to torch what it runs as fast on a CPU; "torch" forces the op, in its composition."""

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "4d": ((2, 4, 9, 16), (2, 4, 9, 16), (2, 4, 9, 16)),
    "cross": ((2, 4, 9, 16), (2, 4, 13, 16), (2, 4, 13, 16)),
    "v-dim": ((2, 4, 9, 16), (2, 4, 13, 16), (2, 4, 13, 8)),
    "3d": ((4, 9, 16), (4, 13, 16), (4, 13, 16)),
    "2d": ((9, 16), (13, 16), (13, 24)),
    "5d": ((2, 3, 4, 9, 16), (2, 3, 4, 13, 16), (2, 3, 4, 13, 16)),
    "6d": ((1, 2, 3, 2, 9, 8), (1, 2, 3, 2, 5, 8), (1, 2, 3, 2, 5, 8)),
    "broadcast": ((2, 4, 9, 16), (1, 4, 13, 16), (1, 4, 13, 16)),
    "head-dim-1": ((1, 1, 3, 1), (1, 1, 4, 1), (1, 1, 4, 1)),
    "no-batch": ((0, 4, 9, 16), (0, 4, 9, 16), (0, 4, 9, 16)),
    "no-rows": ((2, 4, 0, 16), (2, 4, 9, 16), (2, 4, 9, 16)),
}


def both(
    inputs: tuple[Tensor, ...], ours: Callable[..., Any], theirs: Callable[..., Any], dout: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(ours, theirs) for the output and each gradient."""
    found = []
    for function in (ours, theirs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        if dout is None:
            dout = torch.randn_like(out)
        found.append((out, *torch.autograd.grad(out, leaves, dout)))
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("forced", OP)
@pytest.mark.parametrize("mask", ["none", "causal", "rows-keys", "bool", "keys"])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_as_torch(shape: str, mask: str, forced: str) -> None:
    inputs = tuple(torch.randn(s) for s in SHAPES[shape])
    rows, keys = inputs[0].shape[-2], inputs[1].shape[-2]
    m = {
        "rows-keys": torch.randn(rows, keys),
        "bool": torch.rand(*[1] * (inputs[0].dim() - 2), rows, keys) > 0.4,
        "keys": torch.arange(keys).expand(1, keys) < 3,
    }.get(mask)
    causal = mask == "causal"
    with fasttx.backend(forced):
        for got, want in both(
            inputs,
            lambda q, k, v: scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.3),
            lambda q, k, v: torch_attention(q, k, v, m, is_causal=causal, scale=0.3),
        ):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("forced", OP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", [None, "float", "bool", "fp32"])
@pytest.mark.parametrize("layout", ["heads-first", "heads-second", "strided"])
def test_accuracy_of_output_and_gradients(layout: str, mask: str | None, dtype: torch.dtype, forced: str) -> None:
    order = {"heads-first": (0, 1, 2, 3), "heads-second": (0, 2, 1, 3), "strided": (3, 1, 2, 0)}[layout]
    sizes = [[2, 4, n, 32] for n in (17, 21, 21)]
    inputs = tuple(
        torch.randn([s[i] for i in order]).to(dtype).permute([order.index(i) for i in range(4)]) for s in sizes
    )
    m: Tensor | None = None
    if mask is not None:
        m = torch.randn(2, 1, 17, 21)
        m = m > -0.5 if mask == "bool" else m if mask == "fp32" else m.to(dtype)
    dout = torch.randn(2, 4, 17, 32).to(dtype)
    with fasttx.backend(forced):
        pairs = both(inputs, lambda *x: scaled_dot_product_attention(*x, m), lambda *x: torch_attention(*x, m), dout)
    m64 = m if m is None or m.dtype == torch.bool else m.double()
    exact = both(
        tuple(x.double() for x in inputs),
        lambda *x: torch_attention(*x, m64),
        lambda *x: torch_attention(*x, m64),
        dout.double(),
    )
    for (got, want), (ref, _) in zip(pairs, exact, strict=True):
        assert_as_accurate(got, want, ref)


def test_grouped_heads() -> None:
    inputs = torch.randn(2, 6, 9, 16), torch.randn(2, 2, 13, 16), torch.randn(2, 2, 13, 16)
    for forced in OP:
        with fasttx.backend(forced):
            for got, want in both(
                inputs,
                lambda *x: scaled_dot_product_attention(*x, enable_gqa=True),
                lambda *x: torch_attention(*x, enable_gqa=True),
            ):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_masked_rows_give_zeros_and_no_gradient() -> None:
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4] = False
    for bias in (mask, torch.zeros(2, 1, 9, 9).masked_fill(~mask, float("-inf"))):
        for forced in OP:
            with fasttx.backend(forced):
                q, k, v = (torch.randn(2, 3, 9, 16, requires_grad=True) for _ in range(3))
                out = scaled_dot_product_attention(q, k, v, bias)
                dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
            assert not out[0, :, 4].any() and not dq[0, :, 4].any()
            assert all(x.isfinite().all() for x in (out, dq, dk, dv))


x4 = torch.randn(2, 3, 5, 8)
ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "one-dim": ((x4[0, 0, 0],) * 3, {}),
    "dims": ((x4, x4[0], x4[0]), {}),
    "dtypes": ((x4, x4.half(), x4), {}),
    "devices": ((x4, x4.to("meta"), x4.to("meta")), {}),
    "head-dim": ((x4, x4[..., :4], x4), {}),
    "keys": ((x4, x4, x4[:, :, :4]), {}),
    "heads": ((x4, x4[:, :2], x4[:, :2]), {}),
    "gqa": ((x4, x4[:, :2], x4[:, :2]), {"enable_gqa": True}),
    "mask-dtype": ((x4, x4, x4, torch.zeros(5, 5, dtype=torch.int32)), {}),
    "mask-half": ((x4, x4, x4, torch.zeros(5, 5).half()), {}),
    "mask-shape": ((x4, x4, x4, torch.zeros(4, 5)), {}),
    "mask-batch": ((x4, x4, x4, torch.zeros(3, 1, 5, 5)), {}),
    "mask-one-dim": ((x4, x4, x4, torch.zeros(5)), {}),
    "mask-and-causal": ((x4, x4, x4, torch.zeros(5, 5)), {"is_causal": True}),
    "dropout-above": ((x4, x4, x4), {"dropout_p": 1.5}),
    "dropout-below": ((x4, x4, x4), {"dropout_p": -0.1}),
    "not-a-tensor": ((None, x4, x4), {}),
    "list": (([1.0], x4, x4), {}),
    "integers": ((x4.long(),) * 3, {}),
    "nan-scale": ((x4, x4, x4), {"scale": float("nan")}),
    "dropout-one": ((x4, x4, x4), {"dropout_p": 1.0}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_torchs(name: str) -> None:
    """What torch refuses is refused with torch's error, what torch accepts gives torch's result."""
    args, kwargs = ERRORS[name]
    try:
        want: Any = torch_attention(*args, **kwargs)
    except Exception as e:
        with pytest.raises(type(e)) as caught:
            scaled_dot_product_attention(*args, **kwargs)
        assert str(caught.value) == str(e)
    else:
        torch.testing.assert_close(scaled_dot_product_attention(*args, **kwargs), want, equal_nan=True)


# ---------------------------------------------------------------------------------- what goes to torch's own function


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
        attention(x, x, x, attn_bias=torch.randn(1, 5, 3, 3, requires_grad=True)).sum().backward()
        xs = x.transpose(1, 2)
        attention(xs, xs, xs, attn_bias=bias).square().sum().backward()
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
        with pytest.raises(RuntimeError, match="dropout_p"):
            torch.autograd.grad(out.sum(), q, create_graph=True)


# ---------------------------------------------------------------------------------- autocast, dropout, the packed call


def test_autocast_casts_and_gives_gradients_in_the_inputs_dtype() -> None:
    q, k, v = (torch.randn(2, 3, 9, 16, requires_grad=True) for _ in range(3))
    for forced in OP:
        with fasttx.backend(forced), torch.autocast("cpu", dtype=torch.bfloat16):
            for mask in (None, torch.randn(9, 9)):
                out = scaled_dot_product_attention(q, k, v, mask)
                assert out.dtype == torch_attention(q, k, v, mask).dtype == torch.bfloat16
            assert attention(q, k, v).dtype == torch.bfloat16
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


def packed(*lengths: int, heads: int = 3, d: int = 16) -> tuple[Tensor, Tensor]:
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return torch.randn(sum(lengths), heads, d), cu


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_is_a_loop_over_sequences(causal: bool) -> None:
    (q, cu_q), (k, cu_k), (v, _) = packed(5, 1, 8), packed(7, 4, 8), packed(7, 4, 8)

    def loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for b in range(3):
            x, y, z = q[cu_q[b] : cu_q[b + 1]], k[cu_k[b] : cu_k[b + 1]], v[cu_k[b] : cu_k[b + 1]]
            m, n = len(x), len(y)
            mask = torch.ones(m, n, dtype=torch.bool).tril(n - m) if causal else None
            parts.append(torch_attention(*(t.transpose(0, 1)[None] for t in (x, y, z)), mask)[0].transpose(0, 1))
        return torch.cat(parts)

    for got, want in both(
        (q, k, v), lambda q, k, v: attention_varlen(q, k, v, cu_q, cu_k, 8, 8, is_causal=causal), loop
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_varlen_options() -> None:
    (q, cu), (k, _), (v, _) = packed(5, 9), packed(5, 9), packed(5, 9)
    out, lse = attention_varlen(q, k, v, cu, cu, 9, 9, return_lse=True)
    assert lse.shape == (3, 14) and lse.dtype == torch.float32
    leaf = q.clone().requires_grad_()
    out2, lse2 = attention_varlen(leaf, k, v, cu, cu, 9, 9, return_lse=True)
    assert not lse2.requires_grad and torch.equal(out, out2)
    out2.sum().backward()
    state = new_rng_state(q.device)
    a, b = (attention_varlen(q, k, v, cu, cu, 9, 9, dropout_p=0.3, rng_state=state) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, out)
    narrow = attention_varlen(q, k, v, cu, cu, 9, 9, window_size=(0, 0))
    torch.testing.assert_close(narrow, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_varlen(q, k, v, cu, cu, 9, 9).dtype == torch.bfloat16
    for kwargs, message in (
        ({"dropout_p": 1.0}, "dropout_p"),
        ({"dropout_p": -0.5}, "dropout_p"),
        ({"attn_bias": torch.zeros(1, 1, 9, 9, requires_grad=True)}, "attn_bias"),
        ({"window_size": (1,)}, "window_size"),
        ({"window_size": (-3, 0)}, "window"),
        ({"scale": float("inf")}, "softmax_scale"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_varlen(q, k, v, cu, cu, 9, 9, **kwargs)
    with pytest.raises(ValueError, match="q's dtype"):
        attention_varlen(q.double(), k.double(), v.double(), cu, cu, 9, 9)
    with pytest.raises(ValueError, match="max_seqlen_q"):
        attention_varlen(q, k, v, cu, cu, 8, 9)


@pytest.mark.parametrize("forced", OP)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1)])
@pytest.mark.parametrize("mask", ["none", "bool", "keys", "float", "seqused"])
def test_the_model_layers_entry(mask: str, window: tuple[int, int], forced: str) -> None:
    q, k, v = (torch.randn(2, n, 4, 64) for n in (40, 50, 50))
    keys = torch.arange(50) < torch.tensor([50, 6])[:, None]
    bias = {
        "bool": torch.rand(2, 1, 40, 50) > 0.4,
        "keys": keys[:, None, None],
        "float": torch.randn(1, 4, 40, 50),
    }.get(mask)
    used = torch.tensor([50, 6], dtype=torch.int32) if mask == "seqused" else None
    distance = torch.arange(50) - torch.arange(40)[:, None]
    seen = torch.ones(2, 1, 40, 50, dtype=torch.bool)
    seen &= (distance >= -window[0]) if window[0] >= 0 else True
    seen &= (distance <= window[1]) if window[1] >= 0 else True
    if mask in ("keys", "seqused"):
        seen &= keys[:, None, None]
    dense = torch.zeros(2, 1, 40, 50).masked_fill(~seen, float("-inf"))
    dense = dense.masked_fill(~bias, float("-inf")) if mask == "bool" else dense + bias if mask == "float" else dense
    with fasttx.backend(forced):
        for got, want in both(
            (q, k, v),
            lambda *x: attention(*x, attn_bias=bias, seqused_k=used, window=window),
            lambda *x: torch_attention(*(t.transpose(1, 2) for t in x), dense).transpose(1, 2),
        ):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    assert attention(q, k, v, attn_bias=bias, seqused_k=used, window=window).is_contiguous()
    assert (
        attention(*(x.double() for x in (q, k, v)), attn_bias=bias, seqused_k=used, window=window).dtype
        == torch.float64
    )


def test_backward_runs_where_forward_ran() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    with fasttx.backend("torch"):
        out = scaled_dot_product_attention(q, q, q)
    before = LAUNCHES["attention_bwd", "torch"]
    out.sum().backward()  # an expanded dout, of stride 0
    assert LAUNCHES["attention_bwd", "torch"] == before + 1


# --------------------------------------------------------------------------------------------- checkpoint and compile


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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole_with_dynamic_shapes(backend: str) -> None:
    torch._dynamo.reset()

    def step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        a = scaled_dot_product_attention(q, k, v, mask)
        b = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=mask)
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
    torch.compile(lambda x: attention(x, x, x, dropout_p=0.4), fullgraph=True, backend="aot_eager")(
        v[None]
    )  # one tensor thrice
    for _ in range(2):
        out = compiled(v)
        (dv,) = torch.autograd.grad(out, v, torch.ones_like(out))
        # out is linear in v: the gradient, taken with the mask that forward drew, gives back the sum of out
        assert float((dv * v).detach().sum()) == pytest.approx(float(out.detach().sum()), rel=1e-3, abs=1e-3)


# ------------------------------------------------------------------------------------------------------- hypothesis

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 4), rows=st.integers(1, 20), keys=st.integers(1, 20),
    d=st.integers(1, 20),
    dv=st.integers(1, 20), mask=st.sampled_from(["none", "bool", "float", "causal"]),
    broadcast=st.lists(st.booleans(), min_size=4, max_size=4),
    drop=st.integers(0, 2), order=st.permutations(range(4)), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_mask_and_stride(
    batch: int, heads: int, rows: int, keys: int, d: int, dv: int, mask: str, broadcast: list[bool], drop: int,
    order: list[int], seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return torch.randn([shape[i] for i in order], generator=g).permute([order.index(i) for i in range(4)])

    q, k, v = tensor(batch, heads, rows, d), tensor(batch, heads, keys, d), tensor(batch, heads, keys, dv)
    shape = [1 if one else n for one, n in zip(broadcast, (batch, heads, rows, keys), strict=True)][drop:]
    m = None
    if mask in ("bool", "float"):
        m = torch.randn(shape, generator=g)
        m = m > 0 if mask == "bool" else m
    causal = mask == "causal"
    for forced in OP:
        with fasttx.backend(forced):
            got = scaled_dot_product_attention(q, k, v, m, is_causal=causal)
        full = None if m is None else m.expand(batch, heads, rows, keys)
        want = torch_attention(
            q.double(), k.double(), v.double(), full.double() if mask == "float" else full, is_causal=causal
        )  # type: ignore[union-attr]
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
