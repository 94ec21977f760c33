"""The attention functions against torch's own: results, gradients and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functional.beside_torch import OP, both, torch_attention
from torch import Tensor

import fasttx
from fasttx.functional import scaled_dot_product_attention
from fasttx.testing import assert_as_accurate

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
        assert_as_accurate(got, want, ref, least=float(ref.abs().max()) / 2)  # of a row in which most cancels


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
def test_errors_are_those_of_torch(name: str) -> None:
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


# ------------------------------------------------------------------------------------------------------- hypothesis


def test_any_shape_mask_and_stride() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(
        batch=st.integers(1, 3),
        heads=st.integers(1, 4),
        rows=st.integers(1, 20),
        keys=st.integers(1, 20),
        d=st.integers(1, 20),
        dv=st.integers(1, 20),
        mask=st.sampled_from(["none", "bool", "float", "causal"]),
        broadcast=st.lists(st.booleans(), min_size=4, max_size=4),
        drop=st.integers(0, 2),
        order=st.permutations(range(4)),
        seed=st.integers(0, 2**31),
    )
    def holds(
        batch: int,
        heads: int,
        rows: int,
        keys: int,
        d: int,
        dv: int,
        mask: str,
        broadcast: list[bool],
        drop: int,
        order: list[int],
        seed: int,
    ) -> None:
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

    holds()
