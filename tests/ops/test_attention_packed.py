"""Packed sequences on a CPU: runs of one length, groups of short sequences, and what dropout makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.test_attention_op import NAMES, cu, results

from fasttx.ops.attention import composed as attention_composed
from fasttx.ops.attention import reference as attention_reference
from fasttx.ops.attention.call import AttentionCall
from fasttx.ops.attention.cpu import (
    chunks as attention_chunks,
)
from fasttx.ops.attention.cpu import (
    dispatch as attention_cpu,
)
from fasttx.ops.attention.cpu import (
    packed as attention_packed,
)
from fasttx.ops.attention.cpu.packed import Lengths, _groups, packed_lengths
from fasttx.testing import assert_as_accurate

# runs at the start, amid and at the end; sequences without tokens; one that fits into no group
LENGTHS = (5, 5, 9, 0, 3, 3, 3, 40, 1, 7, 7)
OTHER_KEYS = (6, 6, 0, 4, 3, 3, 2, 10, 30, 7, 7)


def make(
    len_q: tuple[int, ...],
    len_k: tuple[int, ...],
    p: float = 0.0,
    causal: bool = False,
    heads: int = 4,
    heads_k: int = 4,
    dv: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    q = torch.randn(sum(len_q), heads, 16).to(dtype)
    k, v = (torch.randn(sum(len_k), heads_k, d).to(dtype) for d in (16, dv))
    rng = torch.tensor([99, 5]) if p else None
    sizes = (max(len_q, default=0), max(len_k, default=0))
    return (q, k, v, None, None, cu(len_q), cu(len_k), rng, *sizes, 0.3, p, -1, 0 if causal else -1)


@pytest.fixture(params=[1, 1 << 10, 1 << 20], ids=["alone", "few", "many"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many scores a group may have."""
    monkeypatch.setattr(attention_chunks, "CHUNK", request.param)
    return int(request.param)


SHAPES: dict[str, dict[str, Any]] = {
    "own-keys": {"len_q": LENGTHS, "len_k": LENGTHS},
    "causal": {"len_q": LENGTHS, "len_k": LENGTHS, "causal": True},
    "other-keys": {"len_q": LENGTHS, "len_k": OTHER_KEYS},
    "one-length": {"len_q": (6, 6, 6), "len_k": (4, 4, 4)},
    "grouped-heads": {"len_q": LENGTHS, "len_k": OTHER_KEYS, "heads_k": 2},
    "nothing": {"len_q": (0, 0), "len_k": (0, 3)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dv", [16, 8], ids=["flash", "products"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("chunk")
def test_against_float64(shape: str, dv: int, dtype: torch.dtype) -> None:
    args = make(dv=dv, dtype=dtype, **SHAPES[shape])
    dout = torch.randn(*args[0].shape[:-1], dv).to(dtype)
    refs = results(attention_reference, args, dout)
    plain = results(attention_composed, args, dout)
    for name, got, same, ref in zip(NAMES, results(attention_cpu, args, dout), plain, refs, strict=True):
        if dtype is not torch.float32:  # PyTorch's flash kernel multiplies in `dtype`
            scale = float(ref.nan_to_num(neginf=0.0).abs().max().clamp(min=1.0)) if ref.numel() else 1.0
            same = torch.where(ref.isfinite(), ref + scale * torch.finfo(dtype).eps, ref).to(got.dtype)
        assert_as_accurate(got, same.to(got.dtype), ref, f"{shape} {name}")


@pytest.mark.parametrize("shape", ["own-keys", "causal", "other-keys", "grouped-heads"])
@pytest.mark.usefixtures("chunk")
def test_dropout_and_its_gradients(shape: str) -> None:
    """The mask is read off where v is one-hot; with it, autograd gives what the backward must give."""
    p, keys = 0.25, 40
    q, k, _, *rest = make(p=p, **SHAPES[shape])
    group = q.shape[1] // k.shape[1]
    position = torch.cat([torch.arange(n) for n in rest[3].diff().tolist()])
    one_hot = torch.nn.functional.one_hot(position, keys).float()[:, None].expand(-1, k.shape[1], -1).contiguous()
    dropped, lse = attention_cpu.forward(q, k, one_hot, *rest)
    whole, _ = attention_reference.forward(q, k, one_hot, *rest[:4], None, *rest[5:7], 0.3, 0.0, *rest[9:])
    factor = torch.where(whole > 0, dropped / whole.float(), 0.0)  # (total, heads, keys)
    kept = factor > 0
    assert torch.allclose(factor[kept], torch.tensor(1 / (1 - p)), rtol=1e-4)
    seen = int((whole > 0).sum())
    assert abs(float(kept.sum()) / seen - (1 - p)) < 4 * (p * (1 - p) / seen) ** 0.5

    v = torch.randn(k.shape[0], k.shape[1], 24)
    given = [x.double().requires_grad_() for x in (q, k, v)]
    outs = []
    starts_q, starts_k = rest[2].tolist(), rest[3].tolist()
    for b in range(len(starts_q) - 1):
        rows, at = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        q1, k1, v1 = given[0][rows], *(x[at].repeat_interleave(group, 1) for x in given[1:])
        s = torch.einsum("qhd,khd->qhk", q1, k1) * 0.3
        if rest[-1] == 0:
            s = s.masked_fill(~torch.ones(len(q1), len(k1)).tril().bool()[:, None], float("-inf"))
        outs.append(torch.einsum("qhk,khd->qhd", s.softmax(-1) * factor[rows, :, : len(k1)].double(), v1))
    wanted = torch.cat(outs)
    dout = torch.randn(wanted.shape)
    out, lse = attention_cpu.forward(q, k, v, *rest)
    torch.testing.assert_close(out, wanted.float(), rtol=1e-4, atol=1e-5)
    found = attention_cpu.backward(dout, q, k, v, out, lse, *rest, False, False)
    for name, x, y in zip(NAMES[2:5], found[:3], torch.autograd.grad(wanted, given, dout.double()), strict=True):
        torch.testing.assert_close(x, y.float(), rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_of_q_and_of_k(causal: bool) -> None:
    q, k, _, *rest = make((5, 3), (5, 3), causal=causal)
    call = AttentionCall(*rest)
    for starts in (call, call._replace(cu_seqlens_k=cu((5, 3)))):
        assert packed_lengths(q, k, starts) == ([5, 3], [5, 3], causal)
    other = packed_lengths(q, k, call._replace(cu_seqlens_k=cu((4, 4))))
    assert other == (None if causal else ([5, 3], [4, 4], False))  # causal is aligned at the bottom right there


@pytest.mark.parametrize(
    "change",
    [
        {"attn_bias": torch.zeros(1, 1, 1, 1)},
        {"window_left": 0},
        {"window_left": 2},
        {"window_right": 1},
        *({f"cu_seqlens_{x}": torch.tensor(cut, dtype=torch.int32)} for x in "qk" for cut in ([1, 5, 8], [0, 5, 7])),
    ],
    ids=str,
)
def test_anything_but_lengths_goes_another_way(change: dict[str, Any]) -> None:
    """A bias, a window, or tokens that belong to no sequence."""
    q, k, _, *rest = make((5, 3), (5, 3))
    call = AttentionCall(*rest)._replace(cu_seqlens_q=cu((5, 3)), cu_seqlens_k=cu((5, 3)))
    assert packed_lengths(q, k, call) == ([5, 3], [5, 3], False)
    assert packed_lengths(q, k, call._replace(**change)) is None


@pytest.mark.parametrize(("len_q", "len_k"), [((0, 4), (5, 4)), ((5, 4), (0, 4))], ids=["no-rows", "no-keys"])
@pytest.mark.parametrize("dv", [16, 8], ids=["flash", "products"])
def test_a_sequence_without_rows_or_keys_is_written_too(
    len_q: tuple[int, ...], len_k: tuple[int, ...], dv: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out and gradients are zeros there, not what their memory held before."""
    args = make(len_q, len_k, dv=dv)
    dout = torch.randn(*args[0].shape[:-1], dv)
    refs = results(attention_reference, args, dout)
    new = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **kw: new(*a, **kw).fill_(99))
    for name, got, ref in zip(NAMES, results(attention_cpu, args, dout), refs, strict=True):
        torch.testing.assert_close(got, ref.to(got.dtype), rtol=1e-4, atol=1e-5, msg=name)


GROUPS: dict[str, tuple[Any, ...]] = {  # (lengths of q, of k), heads, head_dim, _PADDING, CHUNK; sequences a group
    "chunk": (((4, 4, 4), (4, 4, 4)), 1, 32, 99, 128, [[4, 4], [4]]),
    "chunk of heads": (((4, 4, 4), (4, 4, 4)), 2, 32, 99, 256, [[4, 4], [4]]),
    "chunk of wide heads": (((4, 4, 4), (4, 4, 4)), 1, 64, 99, 512, [[4, 4], [4]]),
    "no chunk": (((4, 4, 4), (4, 4, 4)), 1, 16, 99, 192, [[4, 4, 4]]),
    "padding": (((3, 4, 3), (3, 4, 3)), 1, 32, 6, 9999, [[4], [3, 3]]),
    "padding of heads": (((3, 4, 3), (3, 4, 3)), 2, 32, 13, 9999, [[4], [3, 3]]),
    "padding of wide heads": (((3, 4, 3), (3, 4, 3)), 1, 64, 27, 9999, [[4], [3, 3]]),
    "no padding": (((3, 4, 3), (3, 4, 3)), 1, 32, 7, 9999, [[4, 3, 3]]),
    "more rows": (((2, 4), (8, 3)), 1, 32, 35, 9999, [[2], [4]]),  # 16 more scores for the first, 20 for the second
    "more keys": (((8, 3), (2, 4)), 1, 32, 35, 9999, [[8], [3]]),
    "not more": (((8, 3), (2, 4)), 1, 32, 36, 9999, [[8, 3]]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many sequences share their products: by the scores of a group, and by the padding that one more brings."""
    (len_q, len_k), heads, head_dim, padding, chunk, want = GROUPS[name]
    monkeypatch.setattr(attention_packed, "_PADDING", padding)
    monkeypatch.setattr(attention_chunks, "CHUNK", chunk)
    q = torch.empty(sum(len_q), heads, head_dim)
    found = list(_groups(q, Lengths(list(len_q), list(len_k), False)))
    assert [rows.shape for rows, _, _ in found] == [(len(group), max(group)) for group in want]
    for rows, keys, part in found:
        assert (rows.view is None) is (keys.view is None) is (rows.shape[0] > 1)  # a sequence alone is not copied
        assert (part.rows, part.keys) == (slice(0, rows.shape[1]), slice(0, keys.shape[1]))
        assert (part.bias is None) is (name not in ("no padding", "not more"))  # keys of one length need no mask


def test_equal_neighbours_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = attention_packed.FLASH
    monkeypatch.setattr(attention_packed, "FLASH", lambda *a, **kw: calls.append(a[0].shape) or real(*a, **kw))
    attention_cpu.forward(*make((5, 5, 9, 3, 3), (5, 5, 9, 3, 3)))
    assert calls == [(2, 4, 5, 16), (1, 4, 9, 16), (2, 4, 3, 16)]


def test_short_sequences_share_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    real = attention_chunks.Chunks.forward
    monkeypatch.setattr(
        attention_chunks.Chunks, "forward", lambda self, part, *a: parts.append(a[0].shape[0]) or real(self, part, *a)
    )
    lengths = (20, 3, 400, 21, 4, 22)
    attention_cpu.forward(*make(lengths, lengths, p=0.1))
    assert sum(parts) == len(lengths) and len(parts) <= 3 and parts[0] == 1, parts
