"""Small calls of attention."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw

REPEATED = ("plain", "one_head_of_keys", "packed")
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    q, k, v = draw.randn(2, 70, 2, 96).split(32, dim=-1)
    lengths = draw.tensor([33, 70], torch.int32)
    bias = draw.randn(1, 2, 70, 70)
    yield "check", (q, k, v, bias, lengths, None, None, None, 70, 70, 32**-0.5, 0.0, -1, -1)
    q, k, v = draw.randn(2, 19, 2, 96).split(32, dim=-1)
    lengths = draw.tensor([19, 7], torch.int32)
    bias = draw.randn(1, 2, 19, 19)
    yield "plain", (q, k, v, None, None, None, None, None, 19, 19, 32**-0.5, 0.0, -1, -1)
    yield "lengths-dropout", (q, k, v, None, lengths, None, None, draw.rng_state(), 19, 19, 0.2, 0.25, -1, -1)
    yield "bias-causal", (q, k, v, bias, None, None, None, None, 19, 19, 0.2, 0.0, -1, 0)
    one_head = k[:, :, :1], v[:, :, :1]
    yield "one_head_of_keys", (q, *one_head, None, None, None, None, None, 19, 19, 0.2, 0.0, 3, 3)
    cu_seqlens = draw.tensor([0, 12, 38], torch.int32)
    packed = [x.reshape(38, 2, 32) for x in (q, k, v)]
    yield "packed", (*packed, None, None, cu_seqlens, cu_seqlens, None, 26, 26, 0.2, 0.0, -1, -1)
    starts = draw.tensor([0, 20, 38], torch.int32)  # of keys: more and fewer than queries
    bias = draw.randn(1, 2, 26, 20)
    yield "packed-bias", (*packed, bias, None, cu_seqlens, starts, None, 26, 20, 0.2, 0.0, -1, 16)
    yield "bias_of_keys", (q, k, v, draw.randn(2, 1, 1, 19), None, None, None, None, 19, 19, 0.2, 0.0, -1, -1)
    empty = q.new_empty(0, 19, 2, 32)  # not q[:0]: opcheck cannot copy an empty view with strides of its own
    yield "empty", (empty, empty, empty, None, None, None, None, None, 19, 19, 0.2, 0.0, -1, -1)
    q, k, v = (draw.randn(1, 4, 2, 8) for _ in range(3))
    yield "smallest", (q, k, v, None, None, None, None, None, 4, 4, 0.25, 0.0, -1, -1)


def large(draw: Draw) -> Cases:
    """Several tiles of queries and of keys, of which a window leaves some out; the least dropout that there is; a bias
    of more sequences than a kernel has programs for."""
    q, k, v = draw.randn(1, 200, 4, 32), draw.randn(1, 200, 2, 32), draw.randn(1, 200, 2, 32)
    yield "window-grouped", (q, k, v, None, None, None, None, None, 200, 200, 0.2, 0.0, 37, 5)
    starts = draw.tensor([0, 70, 70, 200], torch.int32)
    q, k, v = draw.randn(200, 2, 96).split(32, dim=-1)
    yield "packed-dropout", (q, k, v, None, None, starts, starts, draw.rng_state(), 130, 130, 0.2, 0.001, -1, -1)
    q, k, v = draw.randn(600, 2, 1, 24).split(8, dim=-1)
    bias = draw.randn(1, 1, 2, 2)
    yield "bias-of-many", (q, k, v, bias, None, None, None, None, 2, 2, 0.2, 0.0, -1, -1)
