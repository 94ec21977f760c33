"""What the tests of the attention kernels share: cases, inputs in poisoned memory, guarded outputs, a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ops.numpy_dropout import attention_keep
from torch import Tensor

from fasttx.kernels.attention import attention_fwd
from fasttx.kernels.attention_bwd import attention_bwd
from fasttx.kernels.attention_config import Config
from fasttx.testing import assert_as_accurate

GUARD = 64  # elements before and after every output


def quick(gpu: bool) -> tuple[torch.dtype, tuple[Config, Config]]:
    """Dtype of a case that names none, and small tiles: the second is transposed.

    A GPU's compiler takes 5 to 20 seconds for float32 products by one warp, and there are more than a hundred variants;
    bf16 by four warps takes it one. The interpreter compiles nothing.
    """
    warps = 4 if gpu else 1
    tiles = Config(32, 32, warps, 1), Config(32, 32, warps, 1, transposed=True)
    return torch.bfloat16 if gpu else torch.float32, tiles


UNNAMED, SMALL = quick(torch.cuda.is_available())


@dataclass(frozen=True)
class Case:
    """One call; lengths of sequences instead of a batch make it a packed one. mask: a key of `make_bias`.

    aligned: rows of q, k, v and dout begin at multiples of 16 bytes; else none does.
    """

    sq: int = 40
    sk: int = 70
    batch: int = 2
    heads: int = 1
    heads_k: int = 1
    dim: int = 32
    dim_v: int = 32
    dtype: torch.dtype = UNNAMED
    lengths: tuple[tuple[int, int], ...] = ()
    mask: str = ""
    seqused: tuple[int, ...] = ()
    window: tuple[int, int] = (-1, -1)
    dropout_p: float = 0.0
    scale: float | None = None
    deterministic: bool = False
    dout: str = "strided"
    aligned: bool = False

    @property
    def varlen(self) -> bool:
        return bool(self.lengths)


def make_bias(
    kind: str, batch: int, heads: int, sq: int, sk: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """A mask by name; every kind leaves some row of some sequence without a visible key, or none masked at all."""
    if not kind:
        return None
    shapes = {
        "key": (batch, 1, 1, sk),
        "head_key": (1, heads, 1, sk),
        "full": (batch, heads, sq, sk),
        "shared": (1, 1, sq, sk),
        "row": (batch, 1, sq, 1),
        "transposed": (batch, 1, sk, sq),
    }
    name, _, form = kind.partition("-")
    keep = torch.rand(shapes[name], device=device) > 0.3
    if name == "transposed":
        keep = keep.transpose(2, 3)
    if name in ("key", "head_key"):
        keep[..., sk - sk // 3 :] = False  # the loop must end early
    keep[0, 0, 0, :] = False  # a fully masked row, or sequence
    if form == "bool":
        return keep
    wide = torch.float32 if form == "fp32" else dtype
    low = torch.finfo(wide).min if form == "lowest" else float("-inf")
    return torch.randn(keep.shape, device=device).to(wide).masked_fill(~keep, low)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, aligned: bool = False) -> Tensor:
    """Random values whose neighbours in memory, along every dim, are NaN; the last dim is contiguous.

    Rows begin 4 bytes (of 16-bit elements) after a multiple of 8, or at multiples of 16 if `aligned`.
    """
    before, row = (8, -(-(shape[-1] + 9) // 8) * 8) if aligned else (2, shape[-1] + 5)
    room = torch.full(tuple(n + 2 for n in shape[:-1]) + (row,), float("nan"), dtype=dtype, device=device)
    inner = room[tuple(slice(1, 1 + n) for n in shape[:-1]) + (slice(before, before + shape[-1]),)]
    return inner.copy_(torch.randn(shape, device=device))


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(contiguous tensor of NaN, the memory it lies in)"""
    memory = torch.full((math.prod(shape) + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
    return memory[GUARD : memory.numel() - GUARD].view(shape), memory


def check_guards(*memories: Tensor) -> None:
    for memory in memories:
        assert bool(memory[:GUARD].isnan().all()) and bool(memory[-GUARD:].isnan().all()), "written outside an output"


def make_inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """q, k, v, dout and the arguments from attn_bias to window_right."""
    if case.varlen:
        len_q, len_k = zip(*case.lengths, strict=True)
        cu_q, cu_k = (torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device=device) for n in (len_q, len_k))
        batch, sq, sk, lead_q, lead_k = len(len_q), max(len_q), max(len_k), (sum(len_q),), (sum(len_k),)
    else:
        cu_q = cu_k = None
        batch, sq, sk, lead_q, lead_k = case.batch, case.sq, case.sk, (case.batch, case.sq), (case.batch, case.sk)
    q = poisoned((*lead_q, case.heads, case.dim), case.dtype, device, case.aligned)
    k = poisoned((*lead_k, case.heads_k, case.dim), case.dtype, device, case.aligned)
    v = poisoned((*lead_k, case.heads_k, case.dim_v), case.dtype, device, case.aligned)
    dout = poisoned((*lead_q, case.heads, case.dim_v), case.dtype, device, case.aligned)
    if case.dout == "expanded":
        dout = torch.ones((), dtype=case.dtype, device=device).expand(dout.shape)
    elif case.dout == "permuted":
        dout = dout.transpose(-1, -2).contiguous().transpose(-1, -2)
    bias = make_bias(case.mask, batch, case.heads, sq, sk, case.dtype, device)
    seqused = torch.tensor(case.seqused, dtype=torch.int32, device=device) if case.seqused else None
    if seqused is not None:
        for b, n in enumerate(case.seqused):
            k[b, n:] = float("nan")
            v[b, n:] = float("nan")
    rng_state = torch.tensor([0x1234567890ABCDE, 77], device=device) if case.dropout_p else None
    scale = case.dim**-0.5 if case.scale is None else case.scale
    return q, k, v, dout, (bias, seqused, cu_q, cu_k, rng_state, sq, sk, scale, case.dropout_p, *case.window)


def run(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, args: tuple[Any, ...], deterministic: bool) -> list[Tensor]:
    """out, softmax_lse, dq, dk, dv from the kernels, and dbias of an additive mask."""
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    out, m0 = guarded((*q.shape[:-1], v.shape[-1]), q.dtype, q.device)
    lse, m1 = guarded(rows, torch.float32, q.device)
    (dq, m2), (dk, m3), (dv, m4) = (guarded(tuple(x.shape), x.dtype, x.device) for x in (q, k, v))
    bias = args[0]
    needed = bias is not None and bias.is_floating_point()
    dbias, m5 = guarded(tuple(bias.shape), bias.dtype, q.device) if needed else guarded((0,), q.dtype, q.device)
    attention_fwd(out, lse, q, k, v, *args)
    check_guards(m0, m1)
    attention_bwd(dq, dk, dv, dbias, dout, q, k, v, out, lse, *args, deterministic, needed)
    check_guards(m0, m1, m2, m3, m4, m5)
    return [out, lse, dq, dk, dv, *([dbias] if needed else [])]


def composition(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, args: tuple[Any, ...], dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """out, softmax_lse, dq, dk, dv (and dbias) by PyTorch's operators in `dtype`, one sequence at a time; and the sizes
    of terms.

    A row of dq is scale * sum_j p_ij (dp_ij - delta_i) k_j with dp = dout v^T and delta = dout out. Where a query sees
    one key, and nearly so where it sees few, dp and delta cancel; what the rounding of out has lost in delta is left,
    in every backward that keeps no p. The sizes are those of the sums without signs, one for each row of a result.
    """
    bias, seqused, cu_q, cu_k, rng_state, sq, sk, scale, p, left, right = args
    threshold = 0 if p == 0 else min(max(round(256 * p), 1), 255)
    heads, group = q.shape[-2], q.shape[-2] // k.shape[-2]
    full = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    if bias is not None and bias.is_floating_point():
        full.append(bias.detach().to(dtype).requires_grad_())
    batch = q.shape[0] if cu_q is None else len(cu_q) - 1
    outs, lses = [], []
    sizes: dict[str, list[Tensor]] = {"out": [], "dq": [], "dk": [], "dv": []}
    read = torch.zeros(batch, heads, sq, sk, dtype=dtype, device=q.device)
    for b in range(batch):
        if cu_q is None:
            qs, ks, vs = (x[b] for x in full[:3])
            shift, used = 0, sk if seqused is None else int(seqused[b])
        else:
            qs, ks, vs = (x[cu[b] : cu[b + 1]] for x, cu in zip(full[:3], (cu_q, cu_k, cu_k), strict=True))
            shift, used = len(ks) - len(qs), len(ks)
        m, n = len(qs), len(ks)
        i, j = torch.arange(m, device=q.device)[:, None] + shift, torch.arange(n, device=q.device)[None, :]
        seen = j < used
        if left >= 0:
            seen = seen & (j >= i - left)
        if right >= 0:
            seen = seen & (j <= i + right)
        seen = seen.expand(heads, m, n)
        ks, vs = (x[:used].repeat_interleave(group, 1) for x in (ks, vs))  # what lies behind is NaN
        s = torch.einsum("qhd,khd->hqk", qs, ks) * scale
        s = torch.nn.functional.pad(s, (0, n - used))
        vs = torch.nn.functional.pad(vs, (0, 0, 0, 0, 0, n - used))
        if bias is not None:
            part = bias.expand(batch, heads, sq, sk)[b, :, :m, :n]
            if part.dtype == torch.bool:
                seen = seen & part
            else:
                s = s + full[3].expand(batch, heads, sq, sk)[b, :, :m, :n]
                seen = seen & (part > (-65504 if part.dtype == torch.float16 else -1e30))  # the lowest stands for -inf
        s = s.masked_fill(~seen, float("-inf"))
        blind = s.isneginf().all(-1, keepdim=True)
        lses.append(s.logsumexp(-1) if n else s.new_full((heads, m), float("-inf")))
        prob = s.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        kept = torch.ones_like(prob)
        if threshold:
            seed, offset = (int(x) for x in rng_state)
            at = np.arange(m), np.arange(n)
            keep = [attention_keep(seed, offset, b * heads + h, *at, threshold) for h in range(heads)]
            kept = torch.from_numpy(np.stack(keep)).to(q.device, dtype) * (256 / (256 - threshold))
        outs.append(torch.einsum("hqk,khd->qhd", prob * kept, vs))
        with torch.no_grad():
            upstream = (dout[b] if cu_q is None else dout[cu_q[b] : cu_q[b + 1]]).to(dtype).abs()
            dp = torch.einsum("qhd,khd->hqk", upstream, vs.abs()) * kept
            delta = torch.einsum("qhd,qhd->hq", upstream, outs[-1].abs())
            read[b, :, :m, :n] = prob * (dp + delta[..., None])
            terms = abs(scale) * read[b, :, :m, :used]
            sizes["out"].append(torch.einsum("hqk,khd->qhd", prob * kept, vs.abs()).amax(-1))
            sizes["dq"].append(torch.einsum("hqk,khd->qhd", terms, ks.abs()).amax(-1))
            for name, weights, rows in (("dk", terms, qs.abs()), ("dv", (prob * kept)[..., :used], upstream)):
                of_keys = torch.einsum("hqk,qhd->khd", weights, rows).unflatten(1, (-1, group)).sum(2).amax(-1)
                sizes[name].append(torch.nn.functional.pad(of_keys, (0, 0, 0, n - used)))
    out = torch.stack(outs) if cu_q is None else torch.cat(outs)
    lse = torch.stack(lses) if cu_q is None else torch.cat(lses, -1)
    out.backward(dout.to(dtype))
    grads = [x.grad if x.grad is not None else torch.zeros_like(x) for x in full]
    join = torch.stack if cu_q is None else torch.cat
    found = {name: join(of_each) for name, of_each in sizes.items()}
    if bias is not None:
        found["dbias"] = read.sum_to_size(bias.shape).amax(-1)
    return [out.detach(), lse.detach(), *grads], found


def check(case: Case, device: torch.device, bias: tuple[int, ...] = ()) -> None:
    """Forward and backward of a case are as accurate as PyTorch's own operators in the same dtype.

    Args:
        bias: shape of an additive mask that hides nothing, in place of the case's.
    """
    q, k, v, dout, args = make_inputs(case, device)
    if bias:
        args = (torch.randn(bias, device=device).to(case.dtype), *args[1:])
    found = run(q, k, v, dout, args, case.deterministic)
    if args[1] is not None:  # gradients of keys that were never read
        for b, n in enumerate(case.seqused):
            assert not bool(found[3][b, n:].any()) and not bool(found[4][b, n:].any())
    exact, terms = composition(q, k, v, dout, args, torch.float64)
    same, _ = composition(q, k, v, dout, args, case.dtype)
    same[1] = same[1].float()
    names = ("out", "softmax_lse", "dq", "dk", "dv", "dbias")[: len(found)]
    same[5:] = [grad.to(found[5].dtype) for grad in same[5:]]
    for name, a, b, c in zip(names, found, same, exact, strict=True):
        assert_as_accurate(a, b, c, name, least=terms.get(name, 0.0))


Forward = Callable[..., None]


def run_forward(forward: Forward, q: Tensor, k: Tensor, v: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """out and softmax_lse from one launcher."""
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    out, m0 = guarded((*q.shape[:-1], v.shape[-1]), q.dtype, q.device)
    lse, m1 = guarded(rows, torch.float32, q.device)
    forward(out, lse, q, k, v, *args)
    check_guards(m0, m1)
    return out, lse


def check_forward(forward: Forward, case: Case, device: torch.device) -> None:
    """The forward of a case is as accurate as PyTorch's own operators in the same dtype."""
    q, k, v, dout, args = make_inputs(case, device)
    found = run_forward(forward, q, k, v, args)
    exact, terms = composition(q, k, v, dout, args, torch.float64)
    same, _ = composition(q, k, v, dout, args, case.dtype)
    for name, a, b, c in zip(("out", "softmax_lse"), found, (same[0], same[1].float()), exact[:2], strict=True):
        assert_as_accurate(a, b, c, name, least=terms.get(name, 0.0))
