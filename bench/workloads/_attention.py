"""Attention at given shapes, padded, packed or masked, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import attention_peers, packed_peers


def _lengths(batch: int, seqlen: int) -> list[int]:
    """Uniform from 1/batch of seqlen to all of it, in an order that is not sorted."""
    return [seqlen * ((i * 7) % batch + 1) // batch for i in range(batch)] if batch > 1 else [seqlen * 3 // 4]


def attention(
    name: str,
    batch: int,
    seqlen: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype = BF16,
    *,
    dropout_p: float = 0.0,
    causal: bool = False,
    ragged: str = "",
    eager: bool = False,
) -> Workload:
    """`ragged`: "" all tokens are real, "mask" padded with per-sequence lengths, "packed" varlen."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        b, s, h = {"full": (batch, seqlen, heads), "check": (2, seqlen, 2), "tiny": (2, min(seqlen, 48), 1)}[size]
        q, k, v = (randn(device, dtype, seed * 3 + i, b, s, h, head_dim) for i in range(3))
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None
        tail = [s, s, head_dim**-0.5, dropout_p, -1, 0 if causal else -1]
        lengths = torch.tensor(_lengths(b, s), dtype=torch.int32, device=device) if ragged else None
        peers = attention_peers(q, k, v, lengths, dropout_p=dropout_p, causal=causal, eager=eager)
        if ragged == "packed":
            flat = tuple(torch.cat([x[i, :n] for i, n in enumerate(_lengths(b, s))]) for x in (q, k, v))
            cu = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            peers |= packed_peers(flat, cu, s, dropout_p=dropout_p)
            return OpCase([*flat, None, None, cu, cu, rng, *tail], peers)
        return OpCase([q, k, v, None, lengths, None, None, rng, *tail], peers)

    return Workload(name, "attention", build, dropout_p > 0)
