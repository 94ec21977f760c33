"""The loss of linear logits composed of PyTorch's own operators, for a bounded number of rows at a time.

Of a chunk the logits are one product of PyTorch's; what follows them is the composition of cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import MEAN, NONE, SUM
from ..cross_entropy.composed import composed as losses_of_logits
from ..cross_entropy.composed import composed_bwd as gradient_of_logits
from ..cross_entropy.composed import index_weights

CHUNK_BYTES = 1 << 26
"""Logits at a time: 550 rows of BERT's vocabulary in float32, which is enough for the product to run at full speed."""
LEAST_ROWS = 128
"""Rows that a product takes at least: each reads the whole weight, and backward adds to a gradient of its size."""


def rows_at_a_time(n_rows: int, n_cols: int, itemsize: int) -> int:
    """Rows of a chunk, at least one; chunks are as equal as they can be, so that the last is not a sliver."""
    most = max(LEAST_ROWS, CHUNK_BYTES // (n_cols * itemsize))
    chunks = max(1, -(-n_rows // most))
    return max(1, -(-n_rows // chunks))


def _chunks(x: Tensor, n_cols: int, target: Tensor, ignore_index: int) -> list[Tensor | slice]:
    """The rows to compute; on a CPU without the ignored ones (elsewhere to select them would synchronise)."""
    n_rows = x.shape[0]
    if x.device.type == "cpu":
        kept = (target != ignore_index).nonzero().squeeze(1)
        if kept.numel() < n_rows:
            return list(kept.split(rows_at_a_time(kept.numel(), n_cols, x.element_size()))) if kept.numel() else []
    step = rows_at_a_time(n_rows, n_cols, x.element_size())
    return [slice(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_cols = x.shape[0], weight.shape[0]
    per_row = x.new_zeros((n_rows,), dtype=torch.float32)
    lse = x.new_zeros((n_rows,), dtype=torch.float32)
    for rows in _chunks(x, n_cols, target, ignore_index):
        logits = _logits(x[rows], weight, bias)
        per_row[rows], lse[rows], _ = losses_of_logits(
            logits, target[rows], class_weight, ignore_index, label_smoothing, NONE
        )
    if reduction != MEAN:
        return per_row.sum() if reduction == SUM else per_row, lse, torch.ones_like(per_row.sum())
    total = index_weights(target, class_weight, n_cols, ignore_index)[0].sum()
    return per_row.sum() / total, lse, total


def composed_bwd(
    dloss: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    needs_dx: bool,
    needs_dweight: bool,
    needs_dbias: bool,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n_cols, none = weight.shape[0], x.new_empty((0,))
    chunks = _chunks(x, n_cols, target, ignore_index)
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if needs_dx else none
    dweight = dbias = None
    for rows in chunks:
        x_rows = x[rows]
        d = gradient_of_logits(
            dloss[rows] if reduction == NONE else dloss,
            _logits(x_rows, weight, bias),
            target[rows],
            class_weight,
            lse[rows],
            total_weight,
            ignore_index,
            label_smoothing,
            reduction,
        )
        if needs_dx:
            dx[rows] = torch.mm(d, weight)
        if needs_dbias:
            part = d.sum(0, dtype=torch.float32)
            dbias = part if dbias is None else dbias.add_(part)
        if needs_dweight:
            if dweight is None:  # the sum over several chunks of half precision is taken in float32
                dweight = torch.mm(d.t(), x_rows)
                dweight = dweight if len(chunks) == 1 else dweight.float()
            elif d.dtype == torch.float32:
                dweight.addmm_(d.t(), x_rows)
            else:
                dweight.add_(torch.mm(d.t(), x_rows))
    if dweight is None:  # not asked for, or every row is ignored
        dweight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs_dweight else none
    if dbias is None:
        dbias = x.new_zeros((n_cols,)) if needs_dbias else none
    return dx, dweight.to(x.dtype), dbias.to(x.dtype)
