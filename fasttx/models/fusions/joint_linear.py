"""Several linear layers of one input as one product: query, key and value of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _JointLinear(torch.autograd.Function):
    """x (n, in), w_1 .. w_m (out_i, in), b_1 .. b_m (out_i,) or None -> m views (n, out_i) of one x W^T + b.

    Saved for backward: x and the weights, not the joined copy. Backward adds the m shares of dx up within the products,
    where three separate layers would add them by kernels of their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_and_biases: Tensor | None) -> tuple[Tensor, ...]:
        m = len(weights_and_biases) // 2
        weights: Any = weights_and_biases[:m]
        biases: Any = weights_and_biases[m:]
        ctx.save_for_backward(x, *weights)
        ctx.biased = biases[0] is not None
        joined = torch.cat(weights).t()
        out = torch.addmm(torch.cat(biases), x, joined) if ctx.biased else x @ joined
        return out.split([w.shape[0] for w in weights], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        m = len(weights)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = grads[0] @ weights[0]
            for grad, w in zip(grads[1:], weights[1:], strict=True):
                dx = torch.addmm(dx, grad, w)
        dw = [grad.t() @ x if ctx.needs_input_grad[1 + i] else None for i, grad in enumerate(grads)]
        db = [grad.sum(0) if ctx.needs_input_grad[1 + m + i] else None for i, grad in enumerate(grads)]
        return dx, *dw, *db


def joint_linear(input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """``F.linear(input, w, b)`` for each of several weights, computed as one product.

    Args:
        input: (..., in_features).
        weights: each (out_features_i, in_features), of input's dtype unless autocast is on.
        biases: as many, (out_features_i,); None for none.

    Returns:
        Tensors (..., out_features_i): views of one tensor (..., sum of out_features), last dim contiguous.
    """
    device = input.device.type
    tensors = [input, *weights, *(biases or ())]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = [x.to(dtype) for x in tensors]
    rows = tensors[0].reshape(-1, input.shape[-1])
    rest = tensors[1:] if biases else [*tensors[1:], *[None] * len(weights)]
    with torch.autocast(device, enabled=False):
        found = _JointLinear.apply(rows, *rest)
    out = []
    for x in found:
        out.append(x.view(*input.shape[:-1], x.shape[-1]))
    return tuple(out)
