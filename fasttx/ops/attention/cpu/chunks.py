"""A part of an attention call by matrix products, a few heads at a time, with or without dropout.

The scores of one step stay in the cache: nothing of size seqlen_q x seqlen_k is kept for backward, which computes the
scores again and draws the same random bytes again.  The bytes come from PyTorch's generator seeded from rng_state,
eight elements a draw: Philox in PyTorch operators takes as long as the whole of attention.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...dropout.attention import dropout_scale, dropout_threshold
from ..call import AttentionCall
from ..masks import hides
from .parts import INF, Part, additive, window

_softmax = torch.ops.aten._softmax.out
_softmax_backward = torch.ops.aten._softmax_backward_data.out

CHUNK = 3 << 16
"""Scores computed at a time (768 KB: larger falls out of the cache, smaller pays for more calls); at least one head."""


def _heads_of(x: Tensor) -> Tensor:
    """(batch, rows, heads, d) -> fp32 (batch * heads, rows, d); a view for one sequence in fp32."""
    x = x.transpose(1, 2)
    return (x[0] if x.shape[0] == 1 else x.reshape(-1, *x.shape[2:])).float()


class Chunks:
    """Buffers, random bytes and the walk over (sequences, heads) of one part after the other."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        self.threshold = dropout_threshold(call.dropout_p)
        self.keep_scale = dropout_scale(call.dropout_p)
        self.generator: torch.Generator | None = None
        if call.rng_state is not None:
            seed, offset = call.rng_state.tolist()
            self.generator = torch.Generator().manual_seed((seed + offset * 0x9E3779B97F4A7C15) % 2**63)
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        found = self.buffers.get(name)
        if found is None or found.numel() < size:
            found = self.buffers[name] = torch.empty(size, dtype=dtype)
        return found[:size]

    @staticmethod
    def walk(batch: int, heads: int, rows: int, keys: int) -> Iterator[tuple[slice, slice]]:
        """Several sequences with all their heads where those are small, else some heads of one sequence."""
        fit = max(CHUNK // (rows * keys), 1)
        if fit >= 2 * heads:
            step = fit // heads
            for b in range(0, batch, step):
                yield slice(b, min(b + step, batch)), slice(0, heads)
        else:
            for b in range(batch):
                for h in range(0, heads, fit):
                    yield slice(b, b + 1), slice(h, min(h + fit, heads))

    def keep(self, shape: tuple[int, ...], name: str) -> Tensor:
        """0 or 1, (heads, rows, keys) uint8."""
        size = shape[0] * shape[1] * shape[2]
        words = self.buffer("words", (size + 7) // 8, torch.int64).random_(-(2**63), None, generator=self.generator)
        drawn = words.view(torch.uint8)[:size]
        return torch.ge(drawn, self.threshold, out=self.buffer(name, size, torch.uint8)).view(shape)

    def scores(
        self, q: Tensor, k: Tensor, bias: Tensor | None, at: tuple[slice, slice], count: tuple[int, int]
    ) -> Tensor:
        """scale q k^T + bias in the score buffer."""
        heads, rows, keys = q.shape[0], q.shape[1], k.shape[1]
        s = self.buffer("scores", heads * rows * keys).view(heads, rows, keys)
        if bias is not None:
            s.view(*count, rows, keys).copy_(_share(bias, *at))
        return torch.baddbmm(
            s, q, k.transpose(1, 2), beta=0.0 if bias is None else 1.0, alpha=self.call.softmax_scale, out=s
        )

    def forward(self, part: Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        bias = self._bias(part, q, k)
        if q.shape[2] > k.shape[2]:
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
        for b, h in self.walk(q.shape[0], q.shape[2], q.shape[1], k.shape[1]):
            qh, kh, vh = (_heads_of(x[b, :, h]) for x in (q, k, v))
            count = (b.stop - b.start, h.stop - h.start)
            s = self.scores(qh, kh, bias, (b, h), count)
            top = s.amax(-1)
            p = _softmax(s, -1, False, out=s)
            rows_lse = top - p.amax(-1).log()  # the largest probability is exp(largest score - lse)
            if bias is not None:
                dead = hides(top)
                if bool(dead.any()):
                    p.masked_fill_(dead.unsqueeze(-1), 0.0)
                    rows_lse.masked_fill_(dead, -INF)
            if self.generator is not None:
                p.mul_(self.keep(tuple(p.shape), "keep"))
            _product(out[b, :, h], p, vh, self.keep_scale)
            lse[b, h] = rows_lse.view(*count, -1)

    def backward(
        self,
        part: Part,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        dbias: Tensor | None = None,
    ) -> None:
        """Writes dq, dk and dv, and adds to dbias, which has float32 and the dims of the bias, 1 where it has 1."""
        bias = self._bias(part, q, k)
        group, keys = q.shape[2] // k.shape[2], k.shape[1]
        dk_all, dv_all = dk, dv
        if group > 1:
            k, v = (x.repeat_interleave(group, 2) for x in (k, v))
            dk_all, dv_all = torch.empty(k.shape, dtype=torch.float32), torch.empty(v.shape, dtype=torch.float32)
        scale = self.call.softmax_scale
        for b, h in self.walk(q.shape[0], q.shape[2], q.shape[1], keys):
            qh, kh, vh, do = (_heads_of(x[b, :, h]) for x in (q, k, v, dout))
            s = self.scores(qh, kh, bias, (b, h), (b.stop - b.start, h.stop - h.start))
            p = _softmax(s, -1, False, out=s)
            if bias is not None:
                dead = lse[b, h] == -INF
                if bool(dead.any()):
                    p.masked_fill_(dead.reshape(-1, q.shape[1], 1), 0.0)
            z = self.buffer("z", p.numel()).view(p.shape)
            if self.generator is None:
                _product(dv_all[b, :, h], p.transpose(1, 2), do, 1.0)
                dp = torch.bmm(do, vh.transpose(1, 2), out=z)
            else:
                factor = self.buffer("factor", p.numel()).view(p.shape).copy_(self.keep(tuple(p.shape), "keep"))
                _product(dv_all[b, :, h], torch.mul(p, factor, out=z).transpose(1, 2), do, self.keep_scale)
                dp = torch.baddbmm(z, do, vh.transpose(1, 2), beta=0.0, alpha=self.keep_scale, out=z).mul_(factor)
            ds = _softmax_backward(dp, p, -1, torch.float32, grad_input=dp)
            if dbias is not None:
                _add(dbias, (b, h), ds)
            _product(dq[b, :, h], ds, kh, scale)
            _product(dk_all[b, :, h], ds.transpose(1, 2), qh, scale)
        if group > 1:
            dk.copy_(dk_all.view(*dk.shape[:3], group, dk.shape[3]).sum(3))
            dv.copy_(dv_all.view(*dv.shape[:3], group, dv.shape[3]).sum(3))

    def bias_gradient(
        self, part: Part, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dbias: Tensor
    ) -> None:
        """Adds to dbias, as `backward` does, without dropout: where a flash kernel computes the other gradients."""
        bias = self._bias(part, q, k)
        if q.shape[2] > k.shape[2]:
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
        lse = lse.masked_fill(lse == -INF, INF)  # of rows without keys: their probabilities are 0
        for b, h in self.walk(q.shape[0], q.shape[2], q.shape[1], k.shape[1]):
            qh, kh, vh, do, oh = (_heads_of(x[b, :, h]) for x in (q, k, v, dout, out))
            count = (b.stop - b.start, h.stop - h.start)
            p = self.scores(qh, kh, bias, (b, h), count)
            p.sub_(lse[b, h].reshape(-1, q.shape[1], 1)).exp_()
            dp = torch.bmm(do, vh.transpose(1, 2), out=self.buffer("z", p.numel()).view(p.shape))
            _add(dbias, (b, h), dp.sub_((do * oh).sum(-1, keepdim=True)).mul_(p))

    @staticmethod
    def _bias(part: Part, q: Tensor, k: Tensor) -> Tensor | None:
        bias = additive(part.bias, torch.float32)
        if part.causal:
            hidden = ~window(q.shape[1], k.shape[1], 0, -1, 0)
            bias = (
                torch.zeros(hidden.shape).masked_fill_(hidden, -INF) if bias is None else bias.masked_fill(hidden, -INF)
            )
        return bias


def _share(bias: Tensor, b: slice, h: slice) -> Tensor:
    """What sequences `b` and heads `h` read of a bias, or add to its gradient."""
    return bias[b if bias.shape[0] > 1 else slice(None), h if bias.shape[1] > 1 else slice(None)]


def _add(dbias: Tensor, at: tuple[slice, slice], ds: Tensor) -> None:
    into = _share(dbias, *at)
    b, h = at
    into += ds.view(b.stop - b.start, h.stop - h.start, *ds.shape[1:]).sum_to_size(into.shape)


def _product(into: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """into (batch, rows, heads, d) = alpha a b, in place where BLAS can write there."""
    if into.shape[0] == 1 and into.dtype == torch.float32:
        target = into[0].transpose(0, 1)
        torch.baddbmm(target, a, b, beta=0.0, alpha=alpha, out=target)
        return
    result = torch.bmm(a, b)
    if alpha != 1.0:
        result.mul_(alpha)
    batch, rows, heads, head_dim = into.shape
    into.copy_(result.view(batch, heads, rows, head_dim).transpose(1, 2))
