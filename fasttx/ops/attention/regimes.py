"""Regimes of attention: packed or padded to how many tokens, and head_dim."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..cases import Draw
from ..regimes import Axis, Example, Regimes

LENGTH = Axis(("packed", "to 128 tokens", "to 512 tokens", "more tokens"), (0, 129, 513), (-1, 128, 512, 2048))
HEAD_DIM = Axis(("head_dim to 64", "head_dim to 128", "larger head_dim"), (65, 129), (64, 128, 256))
TOKENS, WIDTH = 8192, 768
"""Of a call that is timed: all its tokens, and all its heads."""


def numbers(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int]:
    """The longest of queries and keys, or -1 where they are packed; head_dim."""
    return max(q.shape[1], k.shape[1]) if q.dim() == 4 else -1, max(q.shape[-1], v.shape[-1])


def examples(draw: Draw, few: bool, length: int, head_dim: int) -> Iterator[Example]:
    heads = 2 if few else WIDTH // head_dim
    if length < 0:
        lengths = [1, 37, 70] if few else [512 * ((7 * i) % 32 + 1) // 32 for i in range(32)]
        q, k, v = (draw.randn(sum(lengths), heads, head_dim) for _ in range(3))
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        cu_seqlens = draw.tensor(starts, torch.int32)
        masks: tuple[Tensor | None, ...] = (None, None, cu_seqlens, cu_seqlens)
        length = max(lengths)
    else:
        batch = 2 if few else TOKENS // length
        q, k, v = (draw.randn(batch, length, heads, head_dim) for _ in range(3))
        used = draw.tensor([max(1, length * ((7 * i) % batch + 1) // batch) for i in range(batch)], torch.int32)
        masks = (None, used, None, None)
    tail = (length, length, head_dim**-0.5)
    yield "plain", (q, k, v, *masks, None, *tail, 0.0, -1, -1)
    yield "dropout", (q, k, v, *masks, draw.rng_state(), *tail, 0.1, -1, -1)


REGIMES = Regimes(numbers, (LENGTH, HEAD_DIM), ("packed", "head_dim to 64"), examples)
