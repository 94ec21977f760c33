"""Cross-entropy of logits = x weight^T + bias a chunk of rows at a time, whoever computes the losses of a chunk.

Contract. The products are the vendor's; a chunk of logits, rounded to the dtype of x, is written to one workspace whose
rows start at multiples of 16 bytes, is read by the launcher of cross-entropy that is given, and in backward is
overwritten by its gradient. The number of rows of a chunk is a pure function of the shapes: nothing is read back to the
host. dweight and dbias are summed over chunks in float32, in the order of the rows.

Cost. Forward one product, backward three, 2 n_rows n_cols in_features flop each; the logits of a chunk are written and
read once in forward, and in backward twice written and four times read: from L2 where a chunk stays there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NONE, MEAN = 0, 1
"""Of fasttx.ops.checks, and of reduce.py, which needs Triton."""
CHUNK_BYTES = 1 << 27
LEAST_ROWS = 1024
L2_BYTES = 1 << 25
"""Logits that stay in the L2 of an A100 (40 MB) or an H100 (50 MB) beside the operands that run through it."""
ALIGN = 128


def bytes_moved(n_rows: int, rows: int, n_cols: int, in_features: int, itemsize: int, backward: bool) -> float:
    """Bytes for each logit of n_rows, if chunks have at most `rows` of them: what every chunk moves for the weight, and
    its logits where they leave the L2."""
    chunks = -(-n_rows // rows)
    # Backward reads the weight twice, and reads and writes a float32 gradient of it, or writes it once.
    weight = itemsize if not backward else 2 * itemsize + (8 if chunks > 1 else itemsize)
    logits = 0 if min(rows, n_rows) * n_cols * itemsize <= L2_BYTES else (6 if backward else 2) * itemsize
    return logits + weight * in_features * chunks / n_rows


def rows_at_a_time(n_rows: int, n_cols: int, in_features: int, itemsize: int, backward: bool) -> int:
    """Rows of a chunk; chunks are as equal as multiples of 128 can be.

    Large ones have 128 MiB of logits, but at least 1,024 rows. Every chunk reads the weight, and in backward reads and
    writes a float32 gradient of its size: R flop a 4 bytes of it. Below about 1,000 rows that costs a Hopper more than
    the product. So 250,002 classes get 488 MiB of half-precision logits, which is 1.3 times their weight of 768
    columns, and less than its float32 gradient. Small ones have logits that stay in the L2: they are taken where that
    moves fewer bytes.
    """
    most = max(LEAST_ROWS, CHUNK_BYTES // (n_cols * itemsize) // ALIGN * ALIGN)
    least = L2_BYTES // (n_cols * itemsize) // ALIGN * ALIGN
    given = n_cols, in_features, itemsize, backward
    if least and bytes_moved(n_rows, least, *given) < bytes_moved(n_rows, most, *given):
        most = least
    if n_rows <= most:
        return n_rows
    chunks = -(-n_rows // most)
    return -(-n_rows // (chunks * ALIGN)) * ALIGN


def workspace_of(n_rows: int, n_cols: int, x: Tensor) -> Tensor:
    vec = 16 // x.element_size()
    return x.new_empty((n_rows, -(-n_cols // vec) * vec))[:, :n_cols]


def logits_of(workspace: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
def forward(
    losses_of: Callable[..., None],
    sum_of: Callable[..., None],
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
    """The launcher of forward, but for the first two: arguments as the operator's, outputs first (docs/design.md).

    Args:
        losses_of: the launcher of cross-entropy's forward.
        sum_of: (loss, total_weight, row_losses, target, class_weight, n_cols, ignore_index, mean) -> None, which writes
            the first two.
    """
    n_rows, n_cols = x.shape[0], weight.shape[0]
    target = target.contiguous()
    class_weight = class_weight.contiguous() if class_weight is not None else None
    per_row = loss if reduction == NONE else torch.empty_like(lse)
    step = rows_at_a_time(n_rows, n_cols, x.shape[1], x.element_size(), False)
    workspace = workspace_of(step, n_cols, x)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        logits = logits_of(workspace, x[rows], weight, bias)
        losses_of(
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
        sum_of(loss, total_weight, per_row, target, class_weight, n_cols, ignore_index, reduction == MEAN)


@torch.no_grad()
def backward(
    gradient_of: Callable[..., None],
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
    """The launcher of backward, but for the first, which is that of cross-entropy's backward."""
    n_rows, n_cols = x.shape[0], weight.shape[0]
    step = rows_at_a_time(n_rows, n_cols, x.shape[1], x.element_size(), True)
    target = target.contiguous()
    sums = torch.float32 if step < n_rows else x.dtype
    dweight_sum = dweight if dweight.dtype == sums else torch.empty_like(dweight, dtype=sums)
    dbias_sum: Tensor | None = None
    workspace = workspace_of(step, n_cols, x)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        x_rows = x[rows]
        d = logits_of(workspace, x_rows, weight, bias)
        gradient_of(
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
