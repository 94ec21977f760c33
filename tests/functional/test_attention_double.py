"""Double backward of attention, with dropout too: the mask that forward drew is found again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttx.functional.attention.autograd import run_attention
from fasttx.ops.attention.call import AttentionCall
from fasttx.ops.dropout.attention import attention_keep, dropout_scale
from fasttx.ops.dropout.state import new_rng_state

P = 0.4
HEADS, HEADS_K, M, N, DIM = 4, 2, 20, 37, 16
LENGTHS = ((20, 37), (3, 5), (0, 4), (7, 7))


def _backends() -> list[str]:
    try:
        import triton  # noqa: F401
    except ImportError:
        return ["torch"]
    return ["torch", "triton"]


def _starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def _call(layout: str, device: torch.device) -> tuple[list[Tensor], dict[str, Any]]:
    """q, k, v and the other arguments of run_attention."""
    state = new_rng_state(device)
    if layout == "packed":
        cu_q, cu_k = (_starts([pair[i] for pair in LENGTHS]).to(device) for i in (0, 1))
        sizes = [(int(cu_q[-1]), HEADS), (int(cu_k[-1]), HEADS_K), (int(cu_k[-1]), HEADS_K)]
        more: dict[str, Any] = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    else:
        sizes = [(3, M, HEADS), (3, N, HEADS_K), (3, N, HEADS_K)]  # type: ignore[list-item]
        more = {"cu_seqlens_q": None, "cu_seqlens_k": None}
    bias = None
    if layout == "prefix mask":  # a part a sequence
        bias = (torch.arange(N, device=device) < torch.tensor([N, 5, 0], device=device)[:, None])[:, None, None]
    elif layout == "mask":
        bias = torch.rand(3, 1, M, N, device=device) > 0.3
        bias[1, 0, 2] = False
    more |= {
        "attn_bias": bias,
        "seqused_k": None,
        "rng_state": state,
        "max_seqlen_q": M,
        "max_seqlen_k": N,
        "softmax_scale": 0.3,
        "dropout_p": P,
        "window_left": -1,
        "window_right": 0 if layout == "packed" else -1,
    }
    return [torch.randn(*size, DIM, device=device, requires_grad=True) for size in sizes], more


def _dense(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, more: dict[str, Any]) -> Tensor:
    """The formula, a sequence at a time, in the dtype of q; keep is (batch, heads, M, N)."""
    outs = []
    cu_q, cu_k = more["cu_seqlens_q"], more["cu_seqlens_k"]
    for b in range(keep.shape[0]):
        x, y, z = (
            (q[b], k[b], v[b])
            if cu_q is None
            else (q[cu_q[b] : cu_q[b + 1]], k[cu_k[b] : cu_k[b + 1]], v[cu_k[b] : cu_k[b + 1]])
        )
        m, n = len(x), len(y)
        s = torch.einsum("ihd,jhd->hij", x, y.repeat_interleave(HEADS // HEADS_K, 1)) * more["softmax_scale"]
        seen = torch.ones(1, m, n, dtype=torch.bool, device=q.device)
        if more["window_right"] == 0:
            seen = seen.tril(n - m)
        if more["attn_bias"] is not None:
            seen = seen & more["attn_bias"][b]
        dead = ~seen.any(-1, keepdim=True)
        p = s.masked_fill(~(seen | dead), float("-inf")).softmax(-1).masked_fill(dead, 0.0)
        p = p * keep[b, :, :m, :n] * dropout_scale(P)
        outs.append(torch.einsum("hij,jhd->ihd", p, z.repeat_interleave(HEADS // HEADS_K, 1)))
    return torch.stack(outs) if cu_q is None else torch.cat(outs)


def _kept(backend: str, layout: str, inputs: list[Tensor], more: dict[str, Any]) -> Tensor:
    """Read off the forward: a value that is one at a single key gives that key's probability, dropped or not."""
    batch = len(LENGTHS) if layout == "packed" else 3
    if backend == "triton":
        heads = torch.arange(batch * HEADS, device=inputs[0].device)
        return attention_keep(more["rng_state"], heads, M, N, P).view(batch, HEADS, M, N)
    q, k, v = (x.detach() for x in inputs)
    keep = torch.zeros(batch, HEADS, M, N, dtype=torch.bool)
    for j in range(N):
        one = torch.zeros_like(v)
        if layout == "packed":
            rows = [int(more["cu_seqlens_k"][b]) + j for b, (_, n) in enumerate(LENGTHS) if j < n]
            one[rows] = 1.0
        else:
            one[:, j] = 1.0
        out = run_attention(q, k, one, AttentionCall(**more), backend=backend)[..., 0] != 0
        for b in range(batch):
            if layout == "packed":
                first, end = (int(more["cu_seqlens_q"][b + i]) for i in (0, 1))
                keep[b, :, : end - first, j] = out[first:end].T if j < LENGTHS[b][1] else False
            else:
                keep[b, :, :, j] = out[b].T
    return keep


@pytest.mark.parametrize("backend", _backends())
@pytest.mark.parametrize("layout", ["padded", "prefix mask", "mask", "packed"])
def test_second_derivatives_under_dropout(layout: str, backend: str, device: torch.device) -> None:
    if device.type != "cpu" and backend == "torch":
        pytest.skip("on a GPU the composition draws the kernels' mask: the case triton")
    inputs, more = _call(layout, device)
    keep = _kept(backend, layout, inputs, more)
    shape = (*inputs[0].shape[:-1], DIM)
    dout = torch.randn(shape, device=device)

    def orders(out: Tensor, x: list[Tensor], dout: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        first = list(torch.autograd.grad(out, x, dout, create_graph=True))
        return first, list(torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), x))

    first, second = orders(run_attention(*inputs, AttentionCall(**more), backend=backend), inputs, dout)
    plain = torch.autograd.grad(run_attention(*inputs, AttentionCall(**more), backend=backend), inputs, dout)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    first64, second64 = orders(_dense(*wide, keep, more), wide, dout.double())
    for got, own, want in zip(first, plain, first64, strict=True):
        torch.testing.assert_close(got, own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    for got, want in zip(second, second64, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
