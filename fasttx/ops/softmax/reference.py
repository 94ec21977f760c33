"""softmax in float64, from the formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dropout import rows as row_dropout


def _keep(x: Tensor, rng_state: Tensor, dropout_p: float) -> Tensor:
    rows = torch.arange(x.shape[:-1].numel(), device=x.device)
    keep = row_dropout.row_keep(rng_state, rows, x.shape[-1], row_dropout.SOFTMAX_TAG, dropout_p)
    return keep.reshape(x.shape).double() * row_dropout.keep_scale(dropout_p)


def _probabilities(x: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, log-sum-exp (0 where a masked row has none) and probabilities."""
    s = x.double() * scale
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.double()
    lse = torch.logsumexp(s, -1, keepdim=True)
    if mask is None:
        lse = torch.where(lse == -math.inf, math.nan, lse)
    else:
        lse = torch.where(lse == -math.inf, 0.0, lse)
    return s, lse, (s - lse).exp()


def forward(
    x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> Tensor:
    s, lse, p = _probabilities(x, mask, scale)
    if log:
        return s - lse
    return p if rng_state is None else p * _keep(x, rng_state, dropout_p)


def backward(
    dout: Tensor,
    saved: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    scale: float,
    dropout_p: float,
    log: bool,
) -> Tensor:
    dp = dout.double()
    if log:
        out = saved.double()
        if mask is not None:
            dp = torch.where(out == -math.inf, 0.0, dp)
        return scale * (dp - out.exp() * dp.sum(-1, keepdim=True))
    if rng_state is None:
        p = saved.double()
    else:
        p = _probabilities(saved, mask, scale)[2]
        dp = dp * _keep(saved, rng_state, dropout_p)
    return scale * p * (dp - (dp * p).sum(-1, keepdim=True))
