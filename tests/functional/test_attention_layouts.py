"""Attention over packed sequences, and the model layer's padded call."""

from __future__ import annotations

import pytest
import torch
from functional.beside_torch import OP, both, packed, torch_attention
from torch import Tensor

import fasttx
from fasttx.functional import attention_varlen
from fasttx.functional.attention.layouts import attention_padded
from fasttx.ops.dropout.state import new_rng_state


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
        ({"attn_bias": torch.zeros(1, 1, 9, 8)}, "attn_bias"),
        ({"window_size": (1,)}, "window_size"),
        ({"window_size": (-3, 0)}, "window"),
        ({"scale": float("inf")}, "scale"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_varlen(q, k, v, cu, cu, 9, 9, **kwargs)
    with pytest.raises(ValueError, match="attention_varlen: query's dtype"):
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
            lambda *x: attention_padded(*x, attn_bias=bias, seqused_k=used, window=window),
            lambda *x: torch_attention(*(t.transpose(1, 2) for t in x), dense).transpose(1, 2),
        ):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    assert attention_padded(q, k, v, attn_bias=bias, seqused_k=used, window=window).is_contiguous()
    assert (
        attention_padded(*(x.double() for x in (q, k, v)), attn_bias=bias, seqused_k=used, window=window).dtype
        == torch.float64
    )
