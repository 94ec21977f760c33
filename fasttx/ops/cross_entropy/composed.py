"""Cross-entropy composed of PyTorch's own operators, in two forms.

In chunks of rows, which stay in a CPU's cache, without the ignored ones; and, where little is to be computed, from the
kernels that torch's own function consists of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FEW, MEAN, NONE, SUM, check_target_values

CHUNK = 1 << 17
"""Elements that the composition treats at a time on a CPU: 512 KiB in float32, which stay in the second-level cache."""


def empty_gradient(dloss: Tensor, logits: Tensor, *_: object) -> Tensor:
    """Rows as far apart as those of the logits, if those are padded: both then have the same alignment."""
    n_rows, n_cols = logits.shape
    stride = logits.stride(0)
    if logits.stride(1) != 1 or not n_cols < stride < n_cols + 64:
        return logits.new_empty((n_rows, n_cols))
    return logits.new_empty_strided((n_rows, n_cols), (stride, 1))


def _row_chunks(logits: Tensor, target: Tensor, ignore_index: int) -> list[Tensor | slice]:
    """The rows to compute, in pieces; on a CPU without the ignored ones (elsewhere to select them would
    synchronise).
    """
    n_rows, n_cols = logits.shape
    if logits.device.type != "cpu":
        return [slice(0, n_rows)]
    per_chunk = max(1, CHUNK // max(n_cols, 1))
    if not target.is_floating_point():
        kept = (target != ignore_index).nonzero().squeeze(1)
        if kept.numel() < n_rows:
            return list(kept.split(per_chunk)) if kept.numel() else []
    return [slice(i, i + per_chunk) for i in range(0, n_rows, per_chunk)]


def index_weights(
    target: Tensor, weight: Tensor | None, n_cols: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(w_y, 0 where ignored and NaN where out of range; index that is safe to gather; ignored), each (rows,)."""
    ignored = target == ignore_index
    inside = (target >= 0) & (target < n_cols)
    safe = target.clamp(0, max(n_cols - 1, 0))
    w_y = torch.ones_like(target, dtype=torch.float32) if weight is None else weight.float()[safe]
    w_y = torch.where(inside, w_y, float("nan")).masked_fill(ignored, 0.0)
    return w_y, safe, ignored


def _is_small(logits: Tensor, target: Tensor, label_smoothing: float) -> bool:
    """Whether torch's own pair of kernels serves: class indices on a CPU, in one chunk, where the number of calls and
    not the memory is what costs.
    """
    return (
        0 < logits.numel() <= CHUNK
        and target.dtype is torch.int64
        and label_smoothing == 0.0
        and logits.device.type == "cpu"
    )


def _may_hold(value: float, x: Tensor) -> bool:
    """False if it costs less to see that no element has this value than to treat those that have."""
    return x.numel() > FEW or value in x.tolist()


def _small(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = logits.float()
    log_p = torch._log_softmax(x, 1, False)
    w = None if weight is None else weight.float()
    loss, total = torch.ops.aten.nll_loss_forward.default(log_p, target, w, reduction, ignore_index)
    top = x.amax(1)
    lse = top - log_p.amax(1)
    if _may_hold(float("-inf"), top):  # the lse of nothing but -inf, of which log_p knows only NaN
        lse = torch.where(top == float("-inf"), top, lse)
    if _may_hold(ignore_index, target):
        lse.masked_fill_(target == ignore_index, 0.0)
    return loss, lse, total if reduction == MEAN else torch.ones_like(total)


def _small_bwd(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    reduction: int,
) -> Tensor:
    n_cols = logits.shape[1]
    check_target_values(target, n_cols, ignore_index)  # torch's kernel would write outside
    log_p = torch.sub(logits, lse.unsqueeze(1))  # float32, as lse is
    w = None if weight is None else weight.float()
    d = torch.ops.aten.nll_loss_backward.default(dloss, log_p, target, w, reduction, ignore_index, total_weight)
    d = torch._log_softmax_backward_data(d, log_p, 1, torch.float32)
    if _may_hold(ignore_index, target):
        d.masked_fill_((target == ignore_index).unsqueeze(1), 0.0)  # ignored logits may be NaN
    if logits.dtype is torch.float32 and logits.stride() == (n_cols, 1):
        return d
    return empty_gradient(dloss, logits).copy_(d)


def composed(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    if _is_small(logits, target, label_smoothing):
        return _small(logits, target, weight, ignore_index, reduction)
    n_rows, n_cols = logits.shape
    probs, smoothing = target.is_floating_point(), label_smoothing
    per_row = logits.new_zeros((n_rows,), dtype=torch.float32)
    lse = logits.new_zeros((n_rows,), dtype=torch.float32)
    total = logits.new_full((), n_rows if probs else 0.0, dtype=torch.float32)
    w = None if weight is None else weight.float()
    buffer: Tensor | None = None
    c: Tensor | int
    for rows in _row_chunks(logits, target, ignore_index) if n_rows else []:
        x, t = logits[rows], target[rows]
        top = x.amax(1, keepdim=True).float()
        top.masked_fill_(top == float("-inf"), 0.0)
        if buffer is None:  # the first chunk is the longest
            buffer = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
        z = torch.sub(x, top, out=buffer[: x.shape[0]])
        # The loss is at_label (log_sum - z_y) + log_sum c - s, c = sum of the coefficients, s = sum of them times z.
        if probs:
            t = t.float() * (1.0 - smoothing) + smoothing / n_cols
            t = t if w is None else t * w
            c, s = t.sum(1), t.mul_(z).sum(1)
        else:
            w_y, safe, ignored = index_weights(t, w, n_cols, ignore_index)
            z_y = z.gather(1, safe[:, None]).squeeze(1)
            if smoothing > 0.0:
                c, s = (n_cols, z.sum(1)) if w is None else (w.sum(), z @ w)
        log_sum = z.exp_().sum(1).log_()
        if probs:
            loss = log_sum * c - s
        else:
            loss = (log_sum - z_y) * w_y * (1.0 - smoothing)
            if smoothing > 0.0:
                loss += (log_sum * c - s) * (smoothing / n_cols)
            loss = torch.where(w_y.isnan(), w_y, loss).masked_fill_(ignored, 0.0)
            total += w_y.sum()
        row_lse = log_sum.add_(top.squeeze(1))
        per_row[rows], lse[rows] = loss, row_lse if probs else row_lse.masked_fill_(ignored, 0.0)
    if reduction == NONE:
        return per_row, lse, torch.ones_like(total)
    if reduction == SUM:
        return per_row.sum(), lse, torch.ones_like(total)
    return per_row.sum() / total, lse, total


def composed_bwd(
    dloss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    total_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> Tensor:
    if _is_small(logits, target, label_smoothing):
        return _small_bwd(dloss, logits, target, weight, lse, total_weight, ignore_index, reduction)
    n_rows, n_cols = logits.shape
    probs, smoothing = target.is_floating_point(), label_smoothing
    dlogits = empty_gradient(dloss, logits)
    chunks = _row_chunks(logits, target, ignore_index) if n_rows else []
    whole = bool(chunks) and isinstance(chunks[0], slice)
    if not whole:
        dlogits.zero_()
    in_place = whole and logits.dtype == torch.float32
    scale = (dloss / total_weight).expand(n_rows)
    w = None if weight is None else weight.float()
    buffer: Tensor | None = None
    for rows in chunks:
        x, t = logits[rows], target[rows]
        if buffer is None and not in_place:
            buffer = torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)
        d = torch.sub(x, lse[rows, None], out=dlogits[rows] if buffer is None else buffer[: x.shape[0]]).exp_()
        if probs:
            t = t.float() * (1.0 - smoothing) + smoothing / n_cols
            t = t if w is None else t * w
            d.mul_(t.sum(1, keepdim=True)).sub_(t).mul_(scale[rows, None])
        else:
            w_y, safe, ignored = index_weights(t, w, n_cols, ignore_index)
            at_label = w_y * (1.0 - smoothing)
            g = torch.where(ignored, 0.0, scale[rows])  # of an ignored row 0, also where the divisor is 0
            if smoothing > 0.0:
                d.mul_((at_label + smoothing / n_cols * (n_cols if w is None else w.sum()))[:, None])
                d.sub_(smoothing / n_cols if w is None else w * (smoothing / n_cols)).mul_(g[:, None])
            else:
                d.mul_((at_label * g)[:, None])
            d.scatter_add_(1, safe[:, None], (-at_label * g)[:, None])
            if logits.device.type != "cpu":  # where ignored rows are among them: their logits may be NaN
                d.masked_fill_(ignored[:, None], 0.0)
        if not in_place:
            dlogits[rows] = d.to(logits.dtype)
    return dlogits
