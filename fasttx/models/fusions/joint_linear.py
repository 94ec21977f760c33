"""Several linear layers of one input as one product: query, key and value of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...functional._routing import applied


class _JointLinear(torch.autograd.Function):
    """x (n, in), the shape of a result with one -1, or None, w_1 .. w_m (out_i, in), b_1 .. b_m (out_i,) or None -> m
    views (*shape, out_i / shape[-1]) of one x W^T + b.

    Saved for backward: x and the weights, not the joined copy. Backward adds the m shares of dx up within the products,
    where three separate layers would add them by kernels of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: tuple[int, ...] | None, *weights_and_biases: Tensor | None
    ) -> tuple[Tensor, ...]:
        m = len(weights_and_biases) // 2
        weights: Any = weights_and_biases[:m]
        biases: Any = weights_and_biases[m:]
        ctx.save_for_backward(x, *weights)
        joined = torch.cat(weights).t()
        out = x @ joined if biases[0] is None else torch.addmm(torch.cat(biases), x, joined)
        sizes = []
        for w in weights:
            sizes.append(w.shape[0])
        views = out.split_with_sizes(sizes, 1)
        if shape is None:
            return tuple(views)
        found = []
        for each in views:
            found.append(each.view(shape))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *heads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needs, m = ctx.needs_input_grad, len(weights)
        grads = []
        for grad, w in zip(heads, weights, strict=True):
            grads.append(grad.reshape(-1, w.shape[0]))
        dx = None
        if needs[0]:
            dx = grads[0] @ weights[0]
            for grad, w in zip(grads[1:], weights[1:], strict=True):
                dx = torch.addmm(dx, grad, w)
        dw: list[Tensor | None] = []
        db: list[Tensor | None] = []
        for i, grad in enumerate(grads):
            dw.append(grad.t() @ x if needs[2 + i] else None)
            db.append(grad.sum(0) if needs[2 + m + i] else None)
        return dx, None, *dw, *db


_record = applied(_JointLinear)
_tracing = torch._C._get_tracing_state


def joint_linear(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    shape: tuple[int, ...] | None = None,
) -> tuple[Tensor, ...]:
    """``F.linear(input, w, b)`` for each of several weights, computed as one product.

    Args:
        input: (..., in_features).
        weights: each (out_features_i, in_features), of input's dtype unless autocast is on.
        biases: as many, (out_features_i,); None for none.
        shape: of every result, with -1 for the number of heads; None stands for input's, but for the last dim.

    Returns:
        Tensors of that shape: views of one tensor (..., sum of out_features), last dim contiguous.
    """
    device = input.device.type
    shape = (*input.shape[:-1], -1) if shape is None else shape
    rows = input.reshape(-1, input.shape[-1])
    rest = (*weights, *biases) if biases else (*weights, *(None,) * len(weights))
    # torch.jit.trace makes tensors of sizes, and a Function it traces may hold none that is no input of it
    traced = not torch.compiler.is_dynamo_compiling() and _tracing() is not None
    within = None if traced else shape
    if not torch.is_autocast_enabled(device):
        found = tuple(_record(rows, within, *rest))
    else:
        dtype = torch.get_autocast_dtype(device)
        cast = []
        for x in rest:
            cast.append(x if x is None else x.to(dtype))
        with torch.autocast(device, enabled=False):
            found = tuple(_record(rows.to(dtype), within, *cast))
    return tuple([x.view(shape) for x in found]) if traced else found
