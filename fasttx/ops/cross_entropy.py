"""The cross-entropy row of the table: class indices or probabilities, class weights, ignore_index, label smoothing.

Formulas: kernels/cross_entropy.py.  An ignored row has loss 0, lse 0 and gradient 0, whatever its logits are; a row
whose index lies outside the classes has NaN in all three, unless the check of values stops the call first.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .registry import Half, Impl, Op

NONE, MEAN, SUM = 0, 1, 2
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

CHUNK = 1 << 17
"""Elements that the composition treats at a time on a CPU: 512 KiB in float32, which stay in the second-level cache."""


def check_target_values(target: Tensor, n_cols: int, ignore_index: int) -> None:
    """Raises torch's IndexError for an index outside [0, n_cols) that is not ignored.

    Runs where reading values is free of a device synchronisation (CPU tensors), and anywhere with FASTTX_CHECK=1.
    """
    if target.numel() == 0 or (target.device.type != "cpu" and os.environ.get("FASTTX_CHECK") != "1"):
        return
    low, high = target.aminmax()
    if low >= 0 and high < n_cols:
        return
    bad = target[((target < 0) | (target >= n_cols)) & (target != ignore_index)]
    if bad.numel():
        raise IndexError(f"Target {int(bad[0])} is out of bounds.")


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> None:
    if logits.dim() != 2 or logits.dtype not in FLOATS:
        raise ValueError(
            f"logits: expected float32, float16 or bfloat16 (n_rows, n_cols), got {logits.dtype} {tuple(logits.shape)}"
        )
    n_rows, n_cols = logits.shape
    if target.is_floating_point():
        if target.shape != logits.shape or target.dtype not in FLOATS:
            raise ValueError(
                f"target: probabilities must be float32, float16 or bfloat16 of shape {tuple(logits.shape)}, "
                f"got {target.dtype} {tuple(target.shape)}"
            )
    elif target.dtype != torch.int64 or target.dim() != 1:
        raise ValueError(
            f"target: expected int64 ({n_rows},) or probabilities, got {target.dtype} {tuple(target.shape)}"
        )
    elif target.shape[0] != n_rows:
        raise ValueError(f"Expected input batch_size ({n_rows}) to match target batch_size ({target.shape[0]}).")
    if weight is not None and (weight.shape != (n_cols,) or weight.dtype not in FLOATS):
        raise ValueError(f"weight: expected floating ({n_cols},), got {weight.dtype} {tuple(weight.shape)}")
    for name, t in (("target", target), ("weight", weight)):
        if t is not None and t.device != logits.device:
            raise ValueError(f"{name}: is on {t.device}, logits on {logits.device}; allowed is one device")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: must be between 0.0 and 1.0, got {label_smoothing}")
    if reduction not in (NONE, MEAN, SUM):
        raise ValueError(f"reduction: allowed are 0 (none), 1 (mean) and 2 (sum), got {reduction}")
    if not target.is_floating_point():
        check_target_values(target, n_cols, ignore_index)


def _check_bwd(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, total_weight: Tensor,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> None:  # fmt: skip
    shape = (logits.shape[0],) if reduction == NONE else ()
    if dloss.shape != shape or dloss.dtype != torch.float32:
        raise ValueError(f"dloss: expected float32 {shape}, got {dloss.dtype} {tuple(dloss.shape)}")


def _fake(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = logits.shape[0]
    loss = logits.new_empty((n_rows,) if reduction == NONE else (), dtype=torch.float32)
    return loss, logits.new_empty((n_rows,), dtype=torch.float32), logits.new_empty((), dtype=torch.float32)


def _fake_bwd(dloss: Tensor, logits: Tensor, *_: object) -> Tensor:
    """Rows as far apart as those of the logits, if those are padded: both then have the same alignment."""
    n_rows, n_cols = logits.shape
    stride = logits.stride(0)
    if logits.stride(1) != 1 or not n_cols < stride < n_cols + 64:
        return logits.new_empty((n_rows, n_cols))
    return logits.new_empty_strided((n_rows, n_cols), (stride, 1))


# ------------------------------------------------------------------------------------------ composition and reference


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


def _index_weights(
    target: Tensor, weight: Tensor | None, n_cols: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(w_y, 0 where ignored and NaN where out of range; index that is safe to gather; ignored), each (rows,)."""
    ignored = target == ignore_index
    inside = (target >= 0) & (target < n_cols)
    safe = target.clamp(0, max(n_cols - 1, 0))
    w_y = torch.ones_like(target, dtype=torch.float32) if weight is None else weight.float()[safe]
    w_y = torch.where(inside, w_y, float("nan")).masked_fill(ignored, 0.0)
    return w_y, safe, ignored


def _torch(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
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
            w_y, safe, ignored = _index_weights(t, w, n_cols, ignore_index)
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


def _torch_bwd(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, total_weight: Tensor,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> Tensor:  # fmt: skip
    n_rows, n_cols = logits.shape
    probs, smoothing = target.is_floating_point(), label_smoothing
    dlogits = _fake_bwd(dloss, logits)
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
            w_y, safe, ignored = _index_weights(t, w, n_cols, ignore_index)
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


def _terms64(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """float64 (n_rows, n_cols) coefficients t with loss = sum_j t_j (lse - x_j); the divisor of the mean; ignored
    rows.
    """
    n_rows, n_cols = logits.shape
    w = torch.ones(n_cols, dtype=torch.float64, device=logits.device) if weight is None else weight.double()
    if target.is_floating_point():
        t = w * (target.double() * (1.0 - smoothing) + smoothing / n_cols)
        return t, t.new_tensor(float(n_rows)), torch.zeros(n_rows, dtype=torch.bool, device=t.device)
    ignored = target == ignore_index
    classes = torch.arange(n_cols, device=logits.device)
    t = (classes == target[:, None]) * w * (1.0 - smoothing) + w * (smoothing / n_cols)
    bad = ~ignored & ((target < 0) | (target >= n_cols))
    t[bad] = float("nan")
    w_y = ((classes == target[:, None]) * w).sum(1).masked_fill(bad, float("nan"))
    return t.masked_fill(ignored[:, None], 0.0), w_y.masked_fill(ignored, 0.0).sum(), ignored


def _reference(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, Tensor, Tensor]:
    x = logits.double()
    t, divisor, ignored = _terms64(logits, target, weight, ignore_index, label_smoothing)
    lse = torch.logsumexp(x, 1)
    lse = lse.masked_fill(lse == float("inf"), float("nan"))  # inf - inf, as log_softmax has it and logsumexp has not
    distance = lse[:, None] - x
    if not target.is_floating_point() and label_smoothing == 0.0:
        distance = torch.where(t == 0.0, 0.0, distance)  # only x_y is part of the formula; elsewhere 0 * inf is not
    loss = (t * distance).sum(1).masked_fill(ignored, 0.0)
    lse = lse.masked_fill(ignored, 0.0)
    if reduction == MEAN:
        return loss.sum() / divisor, lse, divisor
    return (loss if reduction == NONE else loss.sum()), lse, torch.ones_like(divisor)


def _reference_bwd(
    dloss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, total_weight: Tensor,
    ignore_index: int, label_smoothing: float, reduction: int,
) -> Tensor:  # fmt: skip
    x = logits.double()
    t, _, ignored = _terms64(logits, target, weight, ignore_index, label_smoothing)
    p = torch.softmax(x, 1)
    g = (dloss.double() / total_weight.double()).expand(logits.shape[0])[:, None]
    return (g * (p * t.sum(1, keepdim=True) - t)).masked_fill(ignored[:, None], 0.0)


# ------------------------------------------------------------------------------------------------------- the row


def _cost(logits: Tensor, target: Tensor, weight: Tensor | None, *_: object) -> tuple[float, float]:
    """Four operations and one read an element (probabilities: eight, and their read); results of a row are 12 bytes."""
    probs = target.is_floating_point()
    moved = logits.numel() * logits.element_size() + target.numel() * target.element_size() + 8 * logits.shape[0]
    return (8.0 if probs else 4.0) * logits.numel(), float(moved)


def _cost_bwd(dloss: Tensor, logits: Tensor, target: Tensor, *_: object) -> tuple[float, float]:
    flop, moved = _cost(logits, target, None)
    return flop, moved + logits.numel() * logits.element_size()


def _supports(logits: Tensor, target: Tensor) -> str | None:
    if logits.dtype not in FLOATS:
        return f"logits: {logits.dtype}; allowed are float32, float16 and bfloat16"
    return None


CROSS_ENTROPY = Op(
    "cross_entropy",
    Half(
        schema="(Tensor logits, Tensor target, Tensor? weight, int ignore_index, float label_smoothing, int reduction, "
        "str backend) -> (Tensor loss, Tensor lse, Tensor total_weight)",
        check=_check,
        fake=_fake,
        torch=_torch,
        reference=_reference,
        keys=("logits", "target"),
        cost=_cost,
    ),
    Half(
        schema="(Tensor dloss, Tensor logits, Tensor target, Tensor? weight, Tensor lse, Tensor total_weight, "
        "int ignore_index, float label_smoothing, int reduction, str backend) -> Tensor",
        check=_check_bwd,
        fake=_fake_bwd,
        torch=_torch_bwd,
        reference=_reference_bwd,
        keys=("logits", "target"),
        cost=_cost_bwd,
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.cross_entropy:cross_entropy_fwd",
            "fasttx.kernels.cross_entropy_bwd:cross_entropy_bwd",
            _supports,
        ),
    ),
)
