"""The row of the Kullback-Leibler divergence: log-probabilities against probabilities or their logarithms.

Formulas: kernels/kl_div.py.  Backward needs the target alone, so that the choice of a backend hangs on that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, NONE, REDUCTIONS, check_dloss, check_one_device, wrong
from ..registry import Direction, Impl, Op
from . import composed, reference
from .composed import BATCHMEAN


def _check_target(target: Tensor, reduction: int) -> None:
    if target.dtype not in FLOATS:
        raise ValueError(wrong("target", target.dtype, "float32, float16 or bfloat16"))
    if reduction not in (*REDUCTIONS, BATCHMEAN):
        raise ValueError(wrong("reduction", reduction, "0 (none), 1 (mean), 2 (sum) or 3 (batchmean)"))
    if reduction == BATCHMEAN and target.dim() == 0:
        raise ValueError(wrong("reduction", "3 (batchmean) for tensors without dims", "0 (none), 1 (mean) or 2 (sum)"))


def _check(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> None:
    if target.shape != x.shape:
        raise ValueError(wrong("target", tuple(target.shape), f"the shape of x, {tuple(x.shape)}"))
    if x.dtype not in FLOATS:
        raise ValueError(wrong("x", x.dtype, "float32, float16 or bfloat16"))
    check_one_device("x", x.device, target=target)
    _check_target(target, reduction)


def _check_bwd(dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> None:
    _check_target(target, reduction)
    check_dloss(dloss, target.shape, reduction)
    if dtype not in FLOATS:
        raise ValueError(wrong("dtype", dtype, "float32, float16 or bfloat16"))


def _fake(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> Tensor:
    return target.new_empty(target.shape if reduction == NONE else (), dtype=torch.float32)


def _fake_bwd(dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype) -> Tensor:
    return target.new_empty(target.shape, dtype=dtype)


def _cost(x: Tensor, target: Tensor, reduction: int, log_target: bool) -> tuple[float, float]:
    """About four operations an element; both inputs once, and the losses if they are not summed."""
    read = x.numel() * x.element_size() + target.numel() * target.element_size()
    return 4.0 * x.numel(), float(read + (4 * x.numel() if reduction == NONE else 4))


def _cost_bwd(
    dloss: Tensor, target: Tensor, reduction: int, log_target: bool, dtype: torch.dtype
) -> tuple[float, float]:
    moved = 4 * dloss.numel() + target.numel() * (target.element_size() + dtype.itemsize)
    return 2.0 * target.numel(), float(moved)


def _supports(target: Tensor) -> str | None:
    if target.dtype not in FLOATS:
        return f"target: {target.dtype}; allowed are float32, float16 and bfloat16"
    return None


KL_DIV = Op(
    "kl_div",
    about="log-probabilities against probabilities or their logarithms (distillation); backward needs no input",
    fwd=Direction(
        "(Tensor x, Tensor target, int reduction, bool log_target, str backend) -> Tensor",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("target",),
        _cost,
    ),
    bwd=Direction(
        "(Tensor dloss, Tensor target, int reduction, bool log_target, ScalarType dtype, str backend) -> Tensor",
        _check_bwd,
        _fake_bwd,
        composed.gradient,
        reference.backward,
        ("target",),
        _cost_bwd,
        compared_by="element",
        derived={"dtype": lambda known: known["x"].dtype},
    ),
    impls=(
        Impl("triton", "fasttx.kernels.kl_div:kl_div_fwd", "fasttx.kernels.kl_div:kl_div_bwd", _supports),
        Impl("cuda", "fasttx.ops.kl_div.cuda:kl_div_fwd", "fasttx.ops.kl_div.cuda:kl_div_bwd", _supports),
    ),
)
