"""The row of binary cross-entropy with logits: weight and pos_weight broadcast against the logits, every reduction.

Formulas: kernels/binary_cross_entropy.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import FLOATS, NONE, REDUCTIONS, broadcasts, check_dloss, wrong
from ..cost import bytes_of
from ..registry import Direction, Impl, Op
from . import composed, reference


def _check(x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int) -> None:
    shape, device = x.shape, x.device
    if target.shape != shape:
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({x.size()})")
    if x.dtype not in FLOATS:
        raise ValueError(wrong("x", x.dtype, "float32, float16 or bfloat16"))
    for name, t in (("target", target), ("weight", weight), ("pos_weight", pos_weight)):
        if t is None:
            continue
        if t.dtype not in FLOATS:
            raise ValueError(wrong(name, t.dtype, "float32, float16 or bfloat16"))
        if t.device != device:
            raise ValueError(wrong(name, f"a tensor on {t.device}", f"{device}, where x is"))
        if t is not target and not broadcasts(t.shape, shape):
            raise ValueError(wrong(name, tuple(t.shape), f"what broadcasts to the shape of x, {tuple(shape)}"))
    if reduction not in REDUCTIONS:
        raise ValueError(wrong("reduction", reduction, "0 (none), 1 (mean) or 2 (sum)"))


def _check_bwd(
    dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> None:
    check_dloss(dloss, x.shape, reduction)


def _fake(x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int) -> Tensor:
    return x.new_empty(x.shape if reduction == NONE else (), dtype=torch.float32)


def _fake_bwd(dloss: Tensor, x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _cost(
    x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> tuple[float, float]:
    """About ten operations an element; every input once, and the losses if they are not summed."""
    return 10.0 * x.numel(), bytes_of(x, target, weight, pos_weight) + (4.0 * x.numel() if reduction == NONE else 4.0)


def _cost_bwd(
    dloss: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> tuple[float, float]:
    return 10.0 * x.numel(), bytes_of(dloss, x, x, target, weight, pos_weight)


def _supports(x: Tensor, target: Tensor) -> str | None:
    if x.dtype not in FLOATS or target.dtype not in FLOATS:
        return f"x, target: {x.dtype}, {target.dtype}; allowed are float32, float16 and bfloat16"
    return None


_ARGUMENTS = "Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction, str backend"
_KEYS = ("x", "target")

BINARY_CROSS_ENTROPY = Op(
    "binary_cross_entropy",
    about="of logits; weight, pos_weight",
    fwd=Direction(f"({_ARGUMENTS}) -> Tensor", _check, _fake, composed.forward, reference.forward, _KEYS, _cost),
    bwd=Direction(
        f"(Tensor dloss, {_ARGUMENTS}) -> Tensor",
        _check_bwd,
        _fake_bwd,
        composed.backward,
        reference.backward,
        _KEYS,
        _cost_bwd,
        compared_by="element",
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.binary_cross_entropy:binary_cross_entropy_fwd",
            "fasttx.kernels.binary_cross_entropy:binary_cross_entropy_bwd",
            _supports,
        ),
        Impl(
            "cuda",
            "fasttx.ops.binary_cross_entropy.cuda:binary_cross_entropy_fwd",
            "fasttx.ops.binary_cross_entropy.cuda:binary_cross_entropy_bwd",
            _supports,
        ),
    ),
)
