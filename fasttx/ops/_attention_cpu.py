"""The attention op of PyTorch's own operators on a CPU: never slower than F.scaled_dot_product_attention.

A call is cut into parts: the whole padded batch at once, or one part a sequence where lengths differ (packed sequences,
seqused_k, a bool key mask that is a prefix), so that masked keys cost nothing.  A part without dropout goes to
PyTorch's CPU flash kernel and its backward.  With dropout, or where v has a head_dim of its own, a few heads at a
time are computed by matrix products whose scores stay in the cache: nothing of size seqlen_q x seqlen_k is kept for
backward, which computes the scores again and draws the same random bytes again.

The bytes come from PyTorch's generator seeded from rng_state, eight elements a draw: Philox in PyTorch operators
takes as long as the whole of attention.  Forward and backward must cut and draw in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._philox import dropout_scale, dropout_threshold

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_softmax = torch.ops.aten._softmax.out
_softmax_backward = torch.ops.aten._softmax_backward_data.out

_CHUNK = 3 << 16
"""Scores computed at a time (768 KB: larger falls out of the cache, smaller pays for more calls); at least one head."""
_INF = float("inf")


def worth_slicing(masked: int, batch: int, head_dim: int) -> bool:
    """Whether one flash call a sequence beats one call with a mask: `masked` keys saved in all."""
    return masked * head_dim >= 2000 * batch


class _Part(NamedTuple):
    """One rectangle of the batch: sequences `batch` (padded) or one packed sequence, and its share of the bias."""

    batch: slice
    rows: slice
    keys: slice
    bias: Tensor | None  # additive or bool, (batch | 1, heads | 1, rows | 1, keys)
    causal: bool  # key j visible iff j <= i, without a bias that says so

    def of(self, x: Tensor, at: slice) -> Tensor:
        """(batch, len(at), heads, head_dim) of a padded or packed tensor."""
        return x[at].unsqueeze(0) if x.dim() == 3 else x[self.batch, at]

    def of_lse(self, softmax_lse: Tensor) -> Tensor:
        """(batch, heads, rows)."""
        return softmax_lse[:, self.rows].unsqueeze(0) if softmax_lse.dim() == 2 else softmax_lse[self.batch]


class _Call(NamedTuple):
    """The arguments that forward and backward share, in the schema's order."""

    attn_bias: Tensor | None
    seqused_k: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    rng_state: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    softmax_scale: float
    dropout_p: float
    window_left: int
    window_right: int


# ------------------------------------------------------------------------------------------------------ the parts


def _prefix_lengths(mask: Tensor, batch: int) -> list[int] | None:
    """Lengths of a bool key mask (batch | 1, 1, 1, seqlen_k) that is a prefix of each sequence."""
    keys = mask[:, 0, 0]
    lengths = keys.sum(-1)
    if not torch.equal(keys, torch.arange(keys.shape[1]) < lengths[:, None]):
        return None
    found = lengths.tolist()
    return found * batch if len(found) < batch else found


def _window(rows: int, keys: int, shift: int, left: int, right: int) -> Tensor:
    distance = torch.arange(keys) - (torch.arange(rows)[:, None] + shift)
    seen = torch.ones((), dtype=torch.bool)
    if left >= 0:
        seen = seen & (distance >= -left)
    if right >= 0:
        seen = seen & (distance <= right)
    return seen[None, None]


def _part(call: _Call, batch: slice, rows: slice, keys: slice, bias: Tensor | None, shift: int) -> _Part:
    """Decides whether the window is the flash kernel's own causal flag or a mask."""
    left, right = call.window_left, call.window_right
    causal = left < 0 and right == 0 and shift == 0
    if not causal and (left >= 0 or right >= 0):
        seen = _window(rows.stop - rows.start, keys.stop - keys.start, shift, left, right)
        if bias is None:
            bias = seen
        else:
            bias = bias & seen if bias.dtype == torch.bool else bias.float().masked_fill(~seen, -_INF)
    return _Part(batch, rows, keys, bias, causal)


def _parts(q: Tensor, k: Tensor, call: _Call) -> Iterator[_Part]:
    bias = call.attn_bias
    if call.cu_seqlens_q is not None and call.cu_seqlens_k is not None:
        starts_q, starts_k = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
        for b in range(len(starts_q) - 1):
            rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
            m, n = rows.stop - rows.start, keys.stop - keys.start
            own = None if bias is None else bias[b : b + 1] if bias.shape[0] > 1 else bias
            if own is not None:
                own = own.expand(-1, -1, -1, call.max_seqlen_k)[:, :, :m, :n]
            yield _part(call, slice(0, 1), rows, keys, own, n - m)
        return
    batch, m, n = q.shape[0], q.shape[1], k.shape[1]
    lengths = None if call.seqused_k is None else call.seqused_k.tolist()
    given = bias
    if lengths is None and bias is not None and bias.dtype == torch.bool and bias.shape[1] == bias.shape[2] == 1:
        if bias.shape[3] == n:
            lengths = _prefix_lengths(bias, batch)
            bias = bias if lengths is None else None
    if bias is not None and bias.shape[3] < n:
        bias = bias.expand(-1, -1, -1, n)
    if lengths is None or min(lengths, default=n) == n:
        yield _part(call, slice(0, batch), slice(0, m), slice(0, n), bias, 0)
        return
    if call.rng_state is None and not worth_slicing(batch * n - sum(lengths), batch, q.shape[-1]):
        if call.seqused_k is not None:
            used = torch.arange(n) < call.seqused_k[:, None, None, None]
            if given is None:
                given = used
            else:
                given = given & used if given.dtype == torch.bool else given.float().masked_fill(~used, -_INF)
        yield _part(call, slice(0, batch), slice(0, m), slice(0, n), given, 0)
        return
    for b, length in enumerate(lengths):
        own = None if bias is None else (bias[b : b + 1] if bias.shape[0] > 1 else bias)[..., :length]
        yield _part(call, slice(b, b + 1), slice(0, m), slice(0, length), own, 0)


def _additive(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias as the kernels of PyTorch take it: added to the scores, in `dtype` or float32."""
    if bias is None or bias.dtype == dtype:
        return bias
    if bias.dtype == torch.bool:
        return torch.zeros(bias.shape, dtype=dtype).masked_fill_(~bias, -_INF)
    return bias.float()


# --------------------------------------------------------------------------------------- PyTorch's CPU flash kernel


def _dead_rows(bias: Tensor, part: _Part, rows: int) -> Tensor:
    """Which rows no key is visible for, bool broadcastable to (batch, heads, rows)."""
    seen = bias > -_INF
    if part.causal:
        seen = seen & _window(rows, bias.shape[-1], 0, -1, 0)
    return ~seen.any(-1)


def _flash_forward(part: _Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(batch, rows, heads, head_dim) and (batch, heads, rows)."""
    bias = _additive(part.bias, q.dtype)
    out, lse = _flash(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, part.causal, attn_mask=bias, scale=scale
    )
    if bias is not None and bool((lse == 0.0).any()):  # the kernel's answer for a row without keys, and a possible lse
        lse = lse.masked_fill(_dead_rows(bias, part, q.shape[1]), -_INF)
    return out.transpose(1, 2), lse


def _flash_part_backward(
    part: _Part, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    bias = _additive(part.bias, q.dtype)
    if bias is not None:
        lse = lse.masked_fill(lse == -_INF, 0.0)  # as the forward kernel left it: exp(-inf - -inf) would be NaN
    q, k, v, out, dout = (x.transpose(1, 2) for x in (q, k, v, out, dout))
    grads = _flash_backward(dout, q, k, v, out, lse, 0.0, part.causal, attn_mask=bias, scale=scale)
    return [g.transpose(1, 2) for g in grads]


# ------------------------------------------------------------------------------------------- a few heads at a time


def _heads_of(x: Tensor) -> Tensor:
    """(batch, rows, heads, d) -> fp32 (batch * heads, rows, d); a view for one sequence in fp32."""
    x = x.transpose(1, 2)
    return (x[0] if x.shape[0] == 1 else x.reshape(-1, *x.shape[2:])).float()


class _Chunks:
    """Buffers, random bytes and the walk over (sequences, heads) of one part after the other."""

    def __init__(self, call: _Call) -> None:
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
        fit = max(_CHUNK // (rows * keys), 1)
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
            b, h = at
            bias = bias[b if bias.shape[0] > 1 else slice(None), h if bias.shape[1] > 1 else slice(None)]
            s.view(*count, rows, keys).copy_(bias)
        return torch.baddbmm(
            s, q, k.transpose(1, 2), beta=0.0 if bias is None else 1.0, alpha=self.call.softmax_scale, out=s
        )

    def forward(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
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
                dead = top == -_INF
                if bool(dead.any()):
                    p.masked_fill_(dead.unsqueeze(-1), 0.0)
                    rows_lse.masked_fill_(dead, -_INF)
            if self.generator is not None:
                p.mul_(self.keep(tuple(p.shape), "keep"))
            _product(out[b, :, h], p, vh, self.keep_scale)
            lse[b, h] = rows_lse.view(*count, -1)

    def backward(
        self,
        part: _Part,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
    ) -> None:
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
                dead = lse[b, h] == -_INF
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
            _product(dq[b, :, h], ds, kh, scale)
            _product(dk_all[b, :, h], ds.transpose(1, 2), qh, scale)
        if group > 1:
            dk.copy_(dk_all.view(*dk.shape[:3], group, dk.shape[3]).sum(3))
            dv.copy_(dv_all.view(*dv.shape[:3], group, dv.shape[3]).sum(3))

    @staticmethod
    def _bias(part: _Part, q: Tensor, k: Tensor) -> Tensor | None:
        bias = _additive(part.bias, torch.float32)
        if part.causal:
            hidden = ~_window(q.shape[1], k.shape[1], 0, -1, 0)
            bias = (
                torch.zeros(hidden.shape).masked_fill_(hidden, -_INF)
                if bias is None
                else bias.masked_fill(hidden, -_INF)
            )
        return bias


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


# ---------------------------------------------------------------------------------------------------- the two halves


def forward(q: Tensor, k: Tensor, v: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    """out and softmax_lse of ops/attention.py."""
    call = _Call(*args)  # type: ignore[arg-type]
    flash = call.rng_state is None and q.shape[-1] == v.shape[-1]
    if flash and _whole(q, k, call):
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        o, lse = _flash(q, k, v, 0.0, call.window_right == 0, scale=call.softmax_scale)
        return o.transpose(1, 2).contiguous(), lse.contiguous()  # the kernel keeps q's order of dims
    out = softmax_lse = None
    chunks = None
    for part in _parts(q, k, call):
        q4, k4, v4 = part.of(q, part.rows), part.of(k, part.keys), part.of(v, part.keys)
        empty = q4.numel() == 0 or k4.numel() == 0
        if flash and not empty:
            o, lse = _flash_forward(part, q4, k4, v4, call.softmax_scale)
            if o.shape == q.shape:
                return o.contiguous(), lse.contiguous()
        if out is None or softmax_lse is None:
            out, softmax_lse = _results(q, v)
        if empty:
            part.of(out, part.rows).zero_()
            part.of_lse(softmax_lse).fill_(-_INF)
        elif flash:
            part.of(out, part.rows).copy_(o)
            part.of_lse(softmax_lse).copy_(lse)
        else:
            chunks = chunks or _Chunks(call)
            chunks.forward(part, q4, k4, v4, part.of(out, part.rows), part.of_lse(softmax_lse))
    if out is None or softmax_lse is None:
        return _results(q, v)
    return out, softmax_lse


def _whole(q: Tensor, k: Tensor, call: _Call) -> bool:
    """Nothing but q, k, v and perhaps the causal flag: one call of the flash kernel, with no time lost before it."""
    return (
        call.attn_bias is None
        and call.seqused_k is None
        and call.cu_seqlens_q is None
        and call.window_left < 0
        and call.window_right <= 0
        and q.numel() > 0
        and k.numel() > 0
    )


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.dim() == 4 else (q.shape[1], q.shape[0])
    return out, q.new_empty(rows, dtype=torch.float32)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, *args: object
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of ops/attention.py."""
    call = _Call(*args[:-1])  # type: ignore[arg-type]
    flash = call.rng_state is None and q.shape[-1] == v.shape[-1]
    if flash and _whole(q, k, call):
        dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
        causal = call.window_right == 0
        dq, dk, dv = _flash_backward(dout, q, k, v, out, softmax_lse, 0.0, causal, scale=call.softmax_scale)
        return dq.transpose(1, 2).contiguous(), dk.transpose(1, 2).contiguous(), dv.transpose(1, 2).contiguous()
    grads: tuple[Tensor, ...] | None = None
    chunks = None
    for part in _parts(q, k, call):
        at = (part.rows, part.keys, part.keys)
        q4, k4, v4 = (part.of(x, where) for x, where in zip((q, k, v), at, strict=True))
        do, lse = part.of(dout, part.rows), part.of_lse(softmax_lse)
        empty = q4.numel() == 0 or k4.numel() == 0
        if flash and not empty:
            found = _flash_part_backward(part, do, q4, k4, v4, part.of(out, part.rows), lse, call.softmax_scale)
            if q.dim() == 4 and found[0].shape == q.shape and found[1].shape == k.shape:
                return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()
        if grads is None:
            grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        if q.dim() == 4 and part.keys.stop < k.shape[1]:
            for g in grads[1:]:
                g[part.batch, part.keys.stop :].zero_()
        into = [part.of(g, where) for g, where in zip(grads, at, strict=True)]
        if empty:
            for g in into:
                g.zero_()
        elif flash:
            for g, f in zip(into, found, strict=True):
                g.copy_(f)
        else:
            chunks = chunks or _Chunks(call)
            chunks.backward(part, do, q4, k4, v4, lse, into[0], into[1], into[2])
    if grads is None:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    return grads[0], grads[1], grads[2]
