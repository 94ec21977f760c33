"""Cross-entropy of logits = x weight^T + bias, which exist for a bounded number of rows at a time.

Mathematics. Forward: loss and lse of each row of the logits, as cross_entropy.py defines them. Backward, from the same
logits, computed again: dlogits as cross_entropy_bwd.py has it, dx = dlogits weight, dweight = dlogits^T x, dbias =
column sums of dlogits. The mean divides by sum_i w_{y_i} over the rows that are not ignored.

Contract. Chunks and products: logit_chunks.py. Row losses are summed in a fixed order by one program. An ignored row
has loss 0 and a zero row of dlogits; its x is read by the products. An index outside [0, n_cols) that is not ignored
makes loss, divisor and dlogits of that row NaN; nothing is read out of bounds.

Cost. That of logit_chunks.py, and 12 bytes a row. Shared memory: that of the reductions.
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl
from torch import Tensor

from . import logit_chunks
from .cross_entropy import cross_entropy_fwd
from .cross_entropy_bwd import cross_entropy_bwd
from .reduce import REDUCE_BLOCK


@triton.jit(do_not_specialize=["n_rows"])
def _reduce_rows(
    loss_ptr,
    total_ptr,
    rows_ptr,
    t_ptr,
    w_ptr,
    n_rows,
    n_cols,
    ignore_index,
    IS_MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """loss = sum(rows) / total; total = sum of w_y over the rows that are not ignored, or 1. One program."""
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    w_acc = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_rows, BLOCK):
        inside = first + offs < n_rows
        acc += tl.load(rows_ptr + first + offs, mask=inside, other=0.0)
        if IS_MEAN:
            y = tl.load(t_ptr + first + offs, mask=inside, other=ignore_index)
            valid = (y >= 0) & (y < n_cols)
            w_y = tl.where(valid, 1.0, float("nan"))
            if WEIGHTED:
                w_y = tl.load(w_ptr + y, mask=valid & (y != ignore_index), other=float("nan")).to(tl.float32)
            w_acc += tl.where(y == ignore_index, 0.0, w_y)
    total = 1.0
    if IS_MEAN:
        total = tl.sum(w_acc, 0)
    tl.store(total_ptr, total)
    tl.store(loss_ptr, tl.sum(acc, 0) / total)


def _sum_of(
    loss: Tensor,
    total_weight: Tensor,
    row_losses: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    n_cols: int,
    ignore_index: int,
    mean: bool,
) -> None:
    """Writes loss and total_weight."""
    _reduce_rows[(1,)](
        loss,
        total_weight,
        row_losses,
        target,
        class_weight if class_weight is not None else row_losses,
        row_losses.shape[0],
        n_cols,
        ignore_index,
        IS_MEAN=mean,
        WEIGHTED=class_weight is not None,
        BLOCK=REDUCE_BLOCK,
        num_warps=4,
    )


linear_cross_entropy_fwd = functools.partial(logit_chunks.forward, cross_entropy_fwd, _sum_of)
linear_cross_entropy_bwd = functools.partial(logit_chunks.backward, cross_entropy_bwd)
