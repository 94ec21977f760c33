"""Attention as a graph of PyTorch's own operators, which autograd can differentiate again (create_graph=True)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import composed
from .op import ATTENTION


def differentiable_forward(backend: str, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> Tensor:
    """out of a call that ran as `backend` asked, on any device; with dropout, by the same mask.

    Args:
        backend, q, k, v, args: the arguments of ``fasttx::attention_fwd``; holds the scores of all heads in memory.
    """
    keep = None
    drawn = args[4] is not None  # rng_state
    if drawn and q.device.type == "cpu" and q.numel() > 0 and ATTENTION.choice(backend, q, k, v) is None:
        keep = _kept_on_cpu(q, k, *args)
    return composed.forward(q, k, v, *(*args, keep))[0]


def _kept_on_cpu(q: Tensor, k: Tensor, *args: Any) -> Tensor:
    """What the composition for a CPU, which has a scheme of its own, kept: (batch, heads, max_seqlen_q, max_seqlen_k).

    With the identity as v, out is the matrix of probabilities after dropout. One that is 0 anyway counts as dropped.
    """
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = args[2], args[3], args[5], args[6]
    q, k = q.detach().float(), k.detach().float()  # fp16 would round small probabilities to 0
    one = torch.eye(max_seqlen_k)
    if isinstance(cu_seqlens_q, Tensor) and isinstance(cu_seqlens_k, Tensor):
        row = torch.cat([torch.arange(int(n)) for n in cu_seqlens_k.diff()])
        v = one[row][:, None].expand(-1, k.shape[1], -1)
        p = ATTENTION.fwd.torch(q, k, v, *args)[0]
        return (composed.pad(p, cu_seqlens_q, max_seqlen_q) != 0).transpose(1, 2)
    v = one[None, :, None].expand(k.shape[0], -1, k.shape[2], -1)
    return (ATTENTION.fwd.torch(q, k, v, *args)[0] != 0).transpose(1, 2)
