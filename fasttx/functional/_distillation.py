"""distillation_loss: what a student learns from a teacher's logits, without a softmax of either in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.checks import check_one_device, described, is_number, values_are_known, values_may_be_read, wrong
from ._routing import derivatives_active

CHUNK = 1 << 22
"""Elements of logits that are computed at a time: 16 MB of float32."""
REDUCTIONS = ("none", "mean", "sum")


def check_options(temperature: float, alpha: float, reduction: str) -> None:
    """Raises ValueError unless they are as :func:`distillation_loss` has them."""
    if not is_number(temperature) or not 0.0 < float(temperature) < float("inf"):
        raise ValueError(wrong("temperature", temperature, "a number above 0"))
    if not is_number(alpha) or not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(wrong("alpha", alpha, "a number from 0 to 1"))
    if reduction not in REDUCTIONS:
        raise ValueError(wrong("reduction", repr(reduction), f"one of {', '.join(map(repr, REDUCTIONS))}"))


def check_kind(kind: str) -> None:
    """Raises ValueError unless it is one of :func:`hidden_state_loss`."""
    if kind not in ("mse", "cosine"):
        raise ValueError(wrong("kind", repr(kind), "'mse' or 'cosine'"))


def _rows(n_rows: int, n_cols: int) -> list[slice]:
    step = max(1, CHUNK // max(1, n_cols))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Per row; where the teacher's probability is 0, a class adds 0."""
    log_s, log_t = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    p_t = log_t.exp()
    return torch.where(p_t > 0.0, p_t * (log_t - log_s), 0.0).sum(-1) * temperature**2


def _loss_of_rows(s: Tensor, t: Tensor, labels: Tensor | None, temperature: float, alpha: float) -> Tensor:
    """Both terms per row; where a row has a label below 0, it counts as 0, and the caller leaves the row out."""
    loss = alpha * _divergence(s, t, temperature) if alpha > 0.0 else torch.zeros_like(s[:, 0])
    if labels is None or alpha == 1.0:
        return loss
    return loss - (1.0 - alpha) * s.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)


def _gradient_of_rows(s: Tensor, t: Tensor, labels: Tensor | None, temperature: float, alpha: float) -> Tensor:
    """d loss / d s of each row, (n_rows, n_classes)."""
    found = torch.zeros_like(s)
    if alpha > 0.0:
        found = alpha * temperature * ((s / temperature).softmax(-1) - (t / temperature).softmax(-1))
    if labels is None or alpha == 1.0:
        return found
    labelled = torch.nn.functional.one_hot(labels.clamp(min=0), s.shape[-1])
    return found + (1.0 - alpha) * (s.softmax(-1) - labelled)


class _DistillationFunction(torch.autograd.Function):
    """The loss per row; saves both logits and the labels, which exist anyway, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float, alpha: float
    ) -> Tensor:
        ctx.save_for_backward(student, teacher, labels)
        ctx.options = temperature, alpha
        loss = torch.empty(student.shape[0], dtype=torch.float32, device=student.device)
        for rows in _rows(*student.shape):
            own = None if labels is None else labels[rows]
            loss[rows] = _loss_of_rows(student[rows].float(), teacher[rows].float(), own, temperature, alpha)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, labels = ctx.saved_tensors

        def gradient(rows: slice) -> Tensor:
            own = None if labels is None else labels[rows]
            of_rows = _gradient_of_rows(student[rows].float(), teacher[rows].float(), own, *ctx.options)
            return (of_rows * dloss[rows, None]).to(student.dtype)

        if torch.is_grad_enabled():  # create_graph: one expression, to be differentiated again
            return gradient(slice(None)), None, None, None, None
        found = torch.empty_like(student)
        for rows in _rows(*student.shape):
            found[rows] = gradient(rows)
        return found, None, None, None, None


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """What a student loses beside a teacher's logits and the labels.

    .. math:: \\alpha\\, \\tau^2\\, \\mathrm{KL}(\\mathrm{softmax}(t / \\tau) \\,\\|\\, \\mathrm{softmax}(s / \\tau))
        + (1 - \\alpha)\\, \\mathrm{CE}(s, y)

    The factor tau^2 keeps the gradient's size the same at every temperature (Hinton, Vinyals and Dean 2015,
    arXiv:1503.02531, section 2). The teacher gets no gradient.

    Args:
        student_logits: s, (..., n_classes), float32, float16, bfloat16 or float64.
        teacher_logits: t, of the same shape, in any floating dtype.
        target: y, int64 (...) of class numbers, or None: then the first term alone is computed, whatever `alpha` is.
        temperature: tau, above 0. The higher, the more the student sees of classes that are unlikely.
        alpha: the share of the teacher, from 0 to 1.
        ignore_index: rows with this label count in neither term: padding, for instance, or tokens that are not masked.
        reduction: ``"mean"`` over the rows that count (0 where none does), ``"sum"``, or ``"none"``.

    Returns:
        float32 (float64 for float64 logits): a scalar, or (...) for ``"none"``, with 0 in rows that do not count.

    Raises:
        ValueError: an argument is not as above; the message names it.

    Saved for backward: both logits, which the caller has, and the labels. Softmaxes are computed again in backward,
    some rows at a time (under torch.compile and in torch.func transforms as PyTorch sees fit). Computed in float32.
    """
    if not isinstance(student_logits, Tensor) or student_logits.dim() < 1 or not student_logits.is_floating_point():
        raise ValueError(wrong("student_logits", described(student_logits), "floats (..., n_classes)"))
    shape = tuple(student_logits.shape)
    teacher = teacher_logits
    if not isinstance(teacher, Tensor) or tuple(teacher.shape) != shape or not teacher.is_floating_point():
        raise ValueError(wrong("teacher_logits", described(teacher), f"floats {shape}, as the student's"))
    if target is not None and (
        not isinstance(target, Tensor) or target.shape != shape[:-1] or target.dtype != torch.int64
    ):
        raise ValueError(wrong("target", described(target), f"int64 {shape[:-1]}, or None"))
    if not isinstance(ignore_index, int):
        raise ValueError(wrong("ignore_index", described(ignore_index), "an int"))
    check_one_device("student_logits", student_logits.device, teacher_logits=teacher_logits, target=target)
    check_options(temperature, alpha, reduction)
    exact = student_logits.dtype == torch.float64
    student = student_logits.reshape(-1, shape[-1])
    teacher = teacher.detach().reshape(-1, shape[-1])
    if target is None:
        alpha = 1.0
    labels = None if target is None else target.reshape(-1)
    counts = None if labels is None else labels != ignore_index
    if labels is not None and counts is not None:
        labels = torch.where(counts, labels, -1)
        if labels.numel() and values_may_be_read(labels.device) and values_are_known(labels):
            least, most = (int(x) for x in torch.aminmax(labels))
            if least < -1 or most >= shape[-1] or bool((counts & (labels < 0)).any()):
                raise ValueError(
                    wrong("target", f"labels from {least} to {most}", f"0 to {shape[-1] - 1}, and ignore_index")
                )
    options = float(temperature), float(alpha)
    if exact or derivatives_active() or torch.compiler.is_compiling():
        wide = torch.float64 if exact else torch.float32
        loss = _loss_of_rows(student.to(wide), teacher.to(wide), labels, *options)
    else:
        loss = _DistillationFunction.apply(student, teacher, labels, *options)
    if counts is not None:
        loss = torch.where(counts, loss, 0.0)
    if reduction == "none":
        return loss.reshape(shape[:-1])
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (max(1, loss.numel()) if counts is None else counts.sum().clamp(min=1))


def hidden_state_loss(
    student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor | None = None, kind: str = "mse"
) -> Tensor:
    """How far a student's hidden states are from a teacher's, over real tokens.

    ``"mse"``: the mean of (s - t)^2 over tokens and width; ``"cosine"``: the mean of 1 - cos(s, t) over tokens.

    Args:
        student_hidden: s, (..., width) floats. Where the student is narrower, put a linear layer of yours between.
        teacher_hidden: t, of the same shape; it gets no gradient.
        attention_mask: (...), 0 or False for tokens that do not count, where a patched model has zeros; None: all do.
        kind: ``"mse"`` or ``"cosine"``.

    Returns:
        A float32 scalar; 0 where no token counts.

    Raises:
        ValueError: an argument is not as above; the message names it.

    Saved for backward: what PyTorch's operators save, both hidden states among it.

    Source: Sun et al. 2019 (arXiv:1908.09355) for mse, Sanh et al. 2019 (arXiv:1910.01108) for cosine.
    """
    if not isinstance(student_hidden, Tensor) or student_hidden.dim() < 1 or not student_hidden.is_floating_point():
        raise ValueError(wrong("student_hidden", described(student_hidden), "floats (..., width)"))
    shape = tuple(student_hidden.shape)
    if not isinstance(teacher_hidden, Tensor) or tuple(teacher_hidden.shape) != shape:
        raise ValueError(wrong("teacher_hidden", described(teacher_hidden), f"floats {shape}, as the student's"))
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.shape != shape[:-1]):
        raise ValueError(wrong("attention_mask", described(attention_mask), f"{shape[:-1]}, or None"))
    check_one_device(
        "student_hidden", student_hidden.device, teacher_hidden=teacher_hidden, attention_mask=attention_mask
    )
    check_kind(kind)
    s, t = student_hidden.float(), teacher_hidden.detach().float()
    if kind == "mse":
        rows = (s - t).square().mean(-1)
    else:
        rows = 1.0 - torch.nn.functional.cosine_similarity(s, t, dim=-1)
    if attention_mask is None:
        return rows.sum() / max(1, rows.numel())
    counts = attention_mask != 0
    return torch.where(counts, rows, 0.0).sum() / counts.sum().clamp(min=1)
