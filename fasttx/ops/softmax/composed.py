"""softmax composed of PyTorch's operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dropout import rows as row_dropout


def scores(x: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    s = x.to(dtype)
    if scale != 1.0:
        s = s * scale
    if mask is None:
        return s
    return torch.where(mask, s, -math.inf) if mask.dtype == torch.bool else s + mask.to(dtype)


def normalise(x: Tensor, mask: Tensor | None, scale: float, log: bool, dtype: torch.dtype) -> Tensor:
    """p or log p in `dtype`, from differentiable operators."""
    s = scores(x, mask, scale, dtype)
    function = torch._log_softmax if log else torch._softmax
    if mask is None or s.shape[-1] == 0:
        return function(s, -1, False)
    nothing = s.amax(-1, keepdim=True) == -math.inf
    return function(s.masked_fill(nothing, 0.0), -1, False).masked_fill(nothing, -math.inf if log else 0.0)


def normalise_bwd(dout: Tensor, out: Tensor, masked: bool, scale: float, log: bool) -> Tensor:
    """dx from the gradient and value of p or log p, both in the dtype of arithmetic, from differentiable operators."""
    if log:
        if masked:
            constant = out == -math.inf
            dout = dout.masked_fill(constant, 0.0)
        ds = torch._log_softmax_backward_data(dout, out, -1, out.dtype)
    else:
        ds = torch._softmax_backward_data(dout, out, -1, out.dtype)
    return ds if scale == 1.0 else ds * scale


def dropped(p: Tensor, rng_state: Tensor, dropout_p: float) -> Tensor:
    keep = row_dropout.drawn_keep(rng_state, p.shape, row_dropout.SOFTMAX_TAG, dropout_p)
    return p * (keep.to(p.dtype) * row_dropout.keep_scale(dropout_p))


def forward(
    x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> Tensor:
    if mask is None and scale == 1.0 and rng_state is None:
        return (torch._log_softmax if log else torch._softmax)(x, -1, False).contiguous()
    p = normalise(x, mask, scale, log, torch.float32)
    if rng_state is not None:
        p = dropped(p, rng_state, dropout_p)
    return p.to(x.dtype).contiguous()


def backward(
    dout: Tensor,
    saved: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    scale: float,
    dropout_p: float,
    log: bool,
) -> Tensor:
    if rng_state is None:
        if mask is None and scale == 1.0:
            return normalise_bwd(dout, saved, False, 1.0, log).contiguous()
        dx = normalise_bwd(dout.float(), saved.float(), mask is not None, scale, log)
    else:
        p = normalise(saved, mask, scale, False, torch.float32)
        dx = normalise_bwd(dropped(dout.float(), rng_state, dropout_p), p, mask is not None, scale, False)
    return dx.to(saved.dtype).contiguous()
