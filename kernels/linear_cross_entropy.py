"""Cross-entropy of logits = x weight^T + bias, which exist for a bounded number of rows at a time.

Mathematics. Forward: loss and lse of each row of the logits, as cross_entropy.py defines them. Backward, from the same
logits, computed again: dlogits as cross_entropy_bwd.py has it, dx = dlogits weight, dweight = dlogits^T x, dbias =
column sums of dlogits. The mean divides by sum_i w_{y_i} over the rows that are not ignored.

Contract. The products are the vendor's; a chunk of logits, rounded to the dtype of x, is written to one workspace
whose rows start at multiples of 16 bytes, is read by the kernels of cross-entropy, and in backward is overwritten by
its gradient. The number of rows of a chunk is a pure function of the shapes: nothing is read back to the host. dweight
and dbias are summed over chunks in float32, in the order of the rows. Row losses are summed in a fixed order by one
program. An ignored row has loss 0 and a zero row of dlogits; its x is read by the products. An index outside
[0, n_cols) that is not ignored makes loss, divisor and dlogits of that row NaN; nothing is read out of bounds.

Cost. Forward one product, backward three, 2 n_rows n_cols in_features flop each; the logits of a chunk are written and
read once in forward, and in backward twice written and four times read. Shared memory: that of the reductions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import cross_entropy_fwd
from .cross_entropy_bwd import cross_entropy_bwd
from .reduce import MEAN, NONE, REDUCE_BLOCK

CHUNK_BYTES = 1 << 27
LEAST_ROWS = 1024
ALIGN = 128


def rows_at_a_time(n_rows: int, n_cols: int, itemsize: int) -> int:
    """Rows of a chunk: 128 MiB of logits, but at least 1,024 rows; chunks as equal as multiples of 128 can be.

    Every chunk reads the weight, and reads and writes a float32 gradient of its size: R flop a 4 bytes of it. Below
    about 1,000 rows that costs a Hopper more than the product. So 250,002 classes get 488 MiB of half-precision
    logits, which is 1.3 times their weight of 768 columns, and less than its float32 gradient.
    """
    most = max(LEAST_ROWS, CHUNK_BYTES // (n_cols * itemsize) // ALIGN * ALIGN)
    if n_rows <= most:
        return n_rows
    return triton.cdiv(triton.cdiv(n_rows, triton.cdiv(n_rows, most)), ALIGN) * ALIGN


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


def _workspace(n_rows: int, n_cols: int, x: Tensor) -> Tensor:
    vec = 16 // x.element_size()
    return x.new_empty((n_rows, triton.cdiv(n_cols, vec) * vec))[:, :n_cols]


def _logits(workspace: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = workspace[: x.shape[0]]
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def _add_product(acc: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """acc = a b, or acc += a b, where acc may be float32 and a, b of half precision."""
    if acc.dtype == a.dtype:
        torch.addmm(acc, a, b, beta=0 if first else 1, out=acc)
    elif acc.is_cuda:
        torch.addmm(acc, a, b, out_dtype=acc.dtype, beta=0 if first else 1, out=acc)
    elif first:
        acc.copy_(torch.mm(a, b))
    else:  # PyTorch sums half precision into float32 on CUDA devices only
        acc.add_(torch.mm(a, b))


@torch.no_grad()
def linear_cross_entropy_fwd(
    loss: Tensor,
    lse: Tensor,
    total_weight: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> None:
    """Launcher of forward; arguments as the operator's, outputs first (docs/design.md)."""
    n_rows, n_cols = x.shape[0], weight.shape[0]
    target = target.contiguous()
    class_weight = class_weight.contiguous() if class_weight is not None else None
    per_row = loss if reduction == NONE else torch.empty_like(lse)
    step = rows_at_a_time(n_rows, n_cols, x.element_size())
    workspace = _workspace(step, n_cols, x)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        logits = _logits(workspace, x[rows], weight, bias)
        cross_entropy_fwd(
            per_row[rows],
            lse[rows],
            total_weight,
            logits,
            target[rows],
            class_weight,
            ignore_index,
            label_smoothing,
            NONE,
        )
    if reduction != NONE:
        _reduce_rows[(1,)](
            loss,
            total_weight,
            per_row,
            target,
            class_weight if class_weight is not None else lse,
            n_rows,
            n_cols,
            ignore_index,
            IS_MEAN=reduction == MEAN,
            WEIGHTED=class_weight is not None,
            BLOCK=REDUCE_BLOCK,
            num_warps=4,
        )


@torch.no_grad()
def linear_cross_entropy_bwd(
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
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
) -> None:
    """Launcher of backward; arguments as the operator's, outputs first (docs/design.md)."""
    n_rows, n_cols = x.shape[0], weight.shape[0]
    step = rows_at_a_time(n_rows, n_cols, x.element_size())
    sums = torch.float32 if step < n_rows else x.dtype
    dweight_sum = dweight if dweight.dtype == sums else torch.empty_like(dweight, dtype=sums)
    dbias_sum: Tensor | None = None
    workspace = _workspace(step, n_cols, x)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        x_rows = x[rows]
        d = _logits(workspace, x_rows, weight, bias)
        cross_entropy_bwd(
            d,
            dloss[rows] if reduction == NONE else dloss,
            d,
            target[rows],
            class_weight,
            lse[rows],
            total_weight,
            ignore_index,
            label_smoothing,
            reduction,
        )
        if needs_dx:
            torch.mm(d, weight, out=dx[rows])
        if needs_dweight:
            _add_product(dweight_sum, d.t(), x_rows, first == 0)
        if needs_dbias:
            part = torch.sum(d, 0, dtype=torch.float32)
            dbias_sum = part if dbias_sum is None else dbias_sum.add_(part)
    if needs_dweight and dweight_sum is not dweight:
        dweight.copy_(dweight_sum)
    if dbias_sum is not None:
        dbias.copy_(dbias_sum)
