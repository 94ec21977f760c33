"""Additive masks that hold the lowest finite number, as transformers' eager masks do: hidden in every one of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.test_attention_op import cu

from fasttx.functional.attention.layouts import attention_padded as attention
from fasttx.functional.attention.sdpa import scaled_dot_product_attention
from fasttx.ops.attention import composed as attention_composed
from fasttx.ops.attention import reference as attention_reference
from fasttx.ops.attention.cpu import dispatch as attention_cpu
from fasttx.ops.backends import backend
from fasttx.ops.checks import FLOATS as DTYPES

ROWS, KEYS, HEADS = 9, 11, 2
DEAD = 4  # this row sees nothing


def seen(kind: str) -> torch.Tensor:
    """(2, 1, rows | 1, keys) bool."""
    keep = torch.rand(2, 1, 1 if kind == "key" else ROWS, KEYS, generator=torch.Generator().manual_seed(3)) > 0.3
    keep[..., 0] = True
    keep[0, :, 0 if kind == "key" else DEAD] = False
    return keep


def lowest(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, torch.finfo(dtype).min)


def make(dtype: torch.dtype, p: float, window: tuple[int, int], varlen: bool, used: bool) -> tuple[Any, Any]:
    lead_q, lead_k = ((2 * ROWS,), (2 * KEYS,)) if varlen else ((2, ROWS), (2, KEYS))
    q, k, v = (torch.randn(*lead, HEADS, 16).to(dtype) for lead in (lead_q, lead_k, lead_k))
    lengths = (cu((ROWS, ROWS)), cu((KEYS, KEYS))) if varlen else (None, None)
    rng = torch.tensor([5, 6]) if p else None
    seqused = torch.tensor([KEYS, 6], dtype=torch.int32) if used else None
    return (q, k, v), (seqused, *lengths, rng, ROWS, KEYS, 0.3, p, *window)


def both(module: Any, qkv: Any, bias: torch.Tensor, rest: Any, dout: torch.Tensor) -> list[torch.Tensor]:
    out, lse = module.forward(*qkv, bias, *rest)
    return [out, lse, *module.backward(dout, *qkv, out.to(dout.dtype), lse.float(), bias, *rest, False, False)]


class Triton:
    @staticmethod
    def forward(*args: Any) -> Any:
        pytest.importorskip("triton", reason="triton is not installed")
        return torch.ops.fasttx.attention_fwd(*args, "triton")

    @staticmethod
    def backward(*args: Any) -> Any:
        return torch.ops.fasttx.attention_bwd(*args, "triton")


MODULES = {
    "cpu": attention_cpu,
    "math": attention_composed,
    "reference": attention_reference,
    "triton": Triton,
}


@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "kind", "p", "window", "varlen", "used"),
    [
        (torch.float32, "key", 0.0, (-1, -1), False, False),
        (torch.float32, "full", 0.0, (-1, -1), False, False),
        (torch.float32, "full", 0.0, (-1, 0), False, False),
        (torch.float32, "full", 0.0, (4, 3), False, True),
        (torch.float32, "full", 0.0, (-1, -1), True, False),
        (torch.float32, "key", 0.25, (-1, -1), False, False),
        (torch.float32, "full", 0.25, (-1, 0), True, False),
        (torch.float16, "full", 0.0, (-1, -1), False, False),
        (torch.bfloat16, "key", 0.0, (-1, -1), False, True),
    ],
)
@pytest.mark.parametrize("module", MODULES)
def test_the_lowest_number_hides_as_a_bool_mask_does(
    module: str,
    dtype: torch.dtype,
    kind: str,
    p: float,
    window: tuple[int, int],
    varlen: bool,
    used: bool,
    bias_dtype: torch.dtype,
) -> None:
    qkv, rest = make(dtype, p, window, varlen, used)
    keep = seen(kind)
    dout = torch.randn(*qkv[0].shape).to(dtype)
    wanted = both(MODULES[module], qkv, keep, rest, dout)
    got = both(MODULES[module], qkv, lowest(keep, bias_dtype), rest, dout)
    dead_row = got[0][DEAD if varlen else (0, DEAD)]
    assert not bool(dead_row.any()), "a row that is hidden throughout gives zeros"
    assert bool(torch.isneginf(got[1]).any())
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 2e-2}
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv", "dbias"), got, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.parametrize("value", [-1e4, -6e4])
@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("module", MODULES)
def test_a_large_negative_number_shared_by_a_row_changes_nothing(
    module: str, bias_dtype: torch.dtype, value: float
) -> None:
    """A softmax does not depend on a constant: only the lowest number of a dtype, and what is below -1e30, hides."""
    qkv, rest = make(torch.float32, 0.0, (-1, -1), False, False)
    out = MODULES[module].forward(*qkv, torch.full((1, 1, ROWS, KEYS), value, dtype=bias_dtype), *rest)[0]
    wanted = attention_reference.forward(*qkv, None, *rest)[0]
    assert float((out - wanted).abs().max()) < 0.02  # fp32 resolves scores of -6e4 to 0.004


@pytest.mark.parametrize("forced", ["auto", "torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(  # torch's function has no window beside a mask
    ("function", "window"),
    [("attention", (-1, -1)), ("attention", (-1, 0)), ("attention", (3, 3)), ("drop-in", (-1, -1))],
)
def test_functions_agree_with_torch_but_for_hidden_rows(
    function: str, window: tuple[int, int], dtype: torch.dtype, forced: str
) -> None:
    if forced == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    q, k, v = (torch.randn(2, n, HEADS, 16).to(dtype).requires_grad_() for n in (ROWS, KEYS, KEYS))
    mask = lowest(seen("full"), dtype)
    i, j = torch.arange(ROWS)[:, None], torch.arange(KEYS)
    inside = torch.ones(ROWS, KEYS, dtype=torch.bool)
    if window[0] >= 0:
        inside &= j >= i - window[0]
    if window[1] >= 0:
        inside &= j <= i + window[1]
    both_masks = (mask == 0) & inside
    dead = ~both_masks.any(-1)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=both_masks.expand(2, HEADS, ROWS, KEYS)
    ).masked_fill(dead[..., None], 0.0)
    with backend(forced):
        if function == "attention":
            out = attention(q, k, v, attn_bias=mask, window=window).transpose(1, 2)
        else:
            out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
        grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    assert not bool(out.transpose(1, 2)[0, DEAD].any())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(out, plain, **tolerance)
    for a, b in zip(grads, torch.autograd.grad(plain.float().square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, **{name: 4 * x for name, x in tolerance.items()})


def test_a_mask_that_learns_hides_too() -> None:
    q, k, v = (torch.randn(2, n, HEADS, 16) for n in (ROWS, KEYS, KEYS))
    mask = lowest(seen("full"), torch.float32).requires_grad_()
    out = attention(q, k, v, attn_bias=mask)
    assert not bool(out[0, DEAD].any())
    (grad,) = torch.autograd.grad(out.square().sum(), mask)
    assert bool(grad.isfinite().all()) and not bool(grad[0, :, DEAD].any()) and bool(grad.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_visible_weights_agree_with_attention(dtype: torch.dtype) -> None:
    """With output_attentions the model layer takes another way; a row that sees nothing is zeros there too."""
    from fasttx.models.attention.interface import fasttx_attention

    q, k, v = (torch.randn(2, HEADS, n, 16).to(dtype) for n in (ROWS, KEYS, KEYS))
    module, mask = torch.nn.Module(), lowest(seen("full"), dtype)
    want, _ = fasttx_attention(module, q, k, v, mask, is_causal=False)
    got, weights = fasttx_attention(module, q, k, v, mask, is_causal=False, output_attentions=True)
    assert weights is not None and not bool(weights[0, :, DEAD].any()) and not bool(got[0, DEAD].any())
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(got, want, **tolerance)


def test_a_mask_of_a_wider_dtype_hides_too() -> None:
    """A call so small that torch's own function runs it."""
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1, :] = torch.finfo(torch.float32).min
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert not bool(out[:, :, 1].any()) and bool(out[:, :, 0].any())


@pytest.mark.parametrize("bias_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["key", "full"])
@pytest.mark.parametrize("name", MODULES)
def test_nan_in_a_mask_is_seen(name: str, kind: str, bias_dtype: torch.dtype) -> None:
    """It hides no key, neither as the last one nor in float16: its row is NaN, as by PyTorch's function."""
    qkv, rest = make(torch.float32, 0.0, (-1, -1), False, False)
    bias = torch.zeros(seen(kind).shape, dtype=bias_dtype)
    bias[1, ..., -1] = float("nan")
    out, lse, dq, *_ = both(MODULES[name], qkv, bias, rest, torch.randn(2, ROWS, HEADS, 16))
    for x in (out, lse, dq):
        assert bool(x[1].isnan().all()) and bool(x[0].isfinite().all())
