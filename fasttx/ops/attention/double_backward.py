"""Attention as a graph of PyTorch's own operators, which autograd can differentiate again (create_graph=True)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import composed
from .call import AttentionCall
from .op import ATTENTION


def differentiable_forward(backend: str, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """out of a call that ran as `backend` asked, on any device; with dropout, by the same mask.

    It holds the scores of all heads in memory.
    """
    keep = None
    drawn = call.rng_state is not None
    if drawn and q.device.type == "cpu" and q.numel() > 0 and ATTENTION.choice(backend, q, k, v) is None:
        keep = _kept_on_cpu(q, k, call)
    return composed.forward(q, k, v, *call, keep=keep)[0]


def _kept_on_cpu(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """What the composition for a CPU, which has a scheme of its own, kept: (batch, heads, max_seqlen_q, max_seqlen_k).

    With the identity as v, out is the matrix of probabilities after dropout. One that is 0 anyway counts as dropped.
    """
    q, k = q.detach().float(), k.detach().float()  # fp16 would round small probabilities to 0
    one = torch.eye(call.max_seqlen_k)
    if call.starts is not None:
        starts_q, starts_k = call.starts
        row = torch.cat([torch.arange(int(n)) for n in starts_k.diff()])
        v = one[row][:, None].expand(-1, k.shape[1], -1)
        p = ATTENTION.fwd.torch(q, k, v, *call)[0]
        return (composed.pad(p, starts_q, call.max_seqlen_q) != 0).transpose(1, 2)
    v = one[None, :, None].expand(k.shape[0], -1, k.shape[2], -1)
    return (ATTENTION.fwd.torch(q, k, v, *call)[0] != 0).transpose(1, 2)
