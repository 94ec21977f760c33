"""The softmax op: rows of scale * x (+ mask), normalised, with optional row-wise dropout; or their logarithm.

    s = scale * x + mask        p = exp(s) / sum_j exp(s_j)         out = dropout(p)   or, with log,   out = log p
    dp = dropout'(dout)         ds = p * (dp - sum_j dp_j p_j)      or, with log,   ds = dout - p * sum_j dout_j
    dx = scale * ds

What backward is given as `saved`: out where dropout_p = 0 (x may be freed); x itself with dropout, because the elements
that were dropped are no longer in out, and p is recomputed from x, mask and rng_state.

A row with nothing to attend to (a mask is given and every score is -inf) gives zeros, -inf with log, and no gradient;
without a mask such a row gives NaN, as torch.softmax does.  Masked elements of a log row are the constant -inf: they
take and give no gradient.  Arithmetic is float32 in every implementation; out has the dtype of x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import FLOATS, broadcasts, not_countable, wrong
from ..cost import bytes_of
from ..dropout import rows as row_dropout
from ..registry import Direction, Impl, Op
from . import composed, reference

MAX_LEADING_DIMS = 4

# ------------------------------------------------------------------------------------------------------------- check


def _check(x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool) -> None:
    if x.dim() < 1:
        raise ValueError(wrong("x", "a tensor without dims", "at least one dim"))
    if x.dtype not in FLOATS:
        raise ValueError(wrong("x", x.dtype, "float32, float16 or bfloat16"))
    if not math.isfinite(scale):
        raise ValueError(wrong("scale", scale, "a finite number"))
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(wrong("dropout_p", dropout_p, "0 to 1"))
    if log and dropout_p > 0.0:
        raise ValueError(wrong("log", f"True with dropout_p={dropout_p}", "one of the two"))
    if mask is not None:
        if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
            raise ValueError(wrong("mask", mask.dtype, "bool or floating"))
        if mask.dim() != x.dim() or not broadcasts(mask.shape, x.shape):
            raise ValueError(
                wrong("mask", tuple(mask.shape), f"the dims of x, {tuple(x.shape)}, each of full size or 1")
            )
        if mask.device != x.device:
            raise ValueError(wrong("mask", f"a tensor on {mask.device}", f"{x.device}, where x is"))
        if x.dim() > MAX_LEADING_DIMS + 1:
            raise ValueError(wrong("x", f"{x.dim()} dims with a mask", f"at most {MAX_LEADING_DIMS + 1}"))
    if (rng_state is None) != (dropout_p == 0.0):
        raise ValueError(
            wrong("rng_state", f"{rng_state} with dropout_p={dropout_p}", "a state where dropout_p > 0, else None")
        )
    if rng_state is not None:
        if rng_state.dtype != torch.int64 or rng_state.shape != (2,):
            raise ValueError(wrong("rng_state", f"{rng_state.dtype} {tuple(rng_state.shape)}", "int64 (2,)"))
        if rng_state.device != x.device:
            raise ValueError(wrong("rng_state", f"a tensor on {rng_state.device}", f"{x.device}, where x is"))


def _check_bwd(
    dout: Tensor,
    saved: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    scale: float,
    dropout_p: float,
    log: bool,
) -> None:
    _check(saved, mask, rng_state, scale, dropout_p, log)
    if dout.shape != saved.shape or dout.dtype != saved.dtype or dout.device != saved.device:
        raise ValueError(
            wrong(
                "dout",
                f"{dout.dtype} {tuple(dout.shape)} on {dout.device}",
                f"{saved.dtype} {tuple(saved.shape)} on {saved.device}, as saved",
            )
        )


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_bwd(dout: Tensor, saved: Tensor, *_: object) -> Tensor:
    return torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)


# --------------------------------------------------------------------------------------------------- float64 reference


# ------------------------------------------------------------------------------------------------------ cost and rows


def _cost(x: Tensor, mask: Tensor | None, *_: object) -> tuple[float, float]:
    """Scale, mask, max, subtract, exp, sum, divide: 7 per element; x and mask read once, out written once."""
    return 7.0 * x.numel(), 2.0 * x.numel() * x.element_size() + bytes_of(mask)


def _cost_bwd(
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, *_: object
) -> tuple[float, float]:
    """Product, sum, subtract, product, scale: 5 per element, 12 where p is recomputed; two reads, one write."""
    recompute = rng_state is not None
    return (12.0 if recompute else 5.0) * saved.numel(), 3.0 * saved.numel() * saved.element_size() + (
        bytes_of(mask if recompute else None)
    )


_ARGUMENTS = "Tensor? mask, Tensor? rng_state, float scale, float dropout_p, bool log, str backend"

SOFTMAX = Op(
    "softmax",
    about="softmax and log-softmax of rows of any length; scale, mask, dropout",
    fwd=Direction(
        f"(Tensor x, {_ARGUMENTS}) -> Tensor",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("x",),
        _cost,
        compared_by="element",
    ),
    bwd=Direction(
        f"(Tensor dout, Tensor saved, {_ARGUMENTS}) -> Tensor",
        _check_bwd,
        _fake_bwd,
        composed.backward,
        reference.backward,
        ("saved",),
        _cost_bwd,
        derived={"saved": lambda known: known["out" if known["rng_state"] is None else "x"]},
    ),
    impls=(
        Impl("triton", "fasttx.kernels.softmax:softmax_fwd", "fasttx.kernels.softmax:softmax_bwd", not_countable),
        Impl("cuda", "fasttx.ops.softmax.cuda:softmax_fwd", "fasttx.ops.softmax.cuda:softmax_bwd", not_countable),
    ),
)


def is_composed(x: Tensor, backend: str) -> bool:
    """Whether the op would run its composition on x under `backend`, as far as the device tells.

    A call with neither mask, scale nor dropout may then go to torch.softmax at once: it is the composition, without the
    cost of an operator in Python.
    """
    return backend == "torch" or (backend == "auto" and x.device.type != "cuda")


def differentiable_bwd(
    dout: Tensor,
    saved: Tensor,
    mask: Tensor | None,
    rng_state: Tensor | None,
    scale: float,
    dropout_p: float,
    log: bool,
    backend: str,
) -> Tensor:
    """What softmax_bwd computes, from operators that can be differentiated again (double backward).

    With dropout the mask is that of the backend that forward ran on.
    """
    if rng_state is None:
        dx = composed.normalise_bwd(dout.float(), saved.float(), mask is not None, scale, log)
    else:
        if SOFTMAX.choice(backend, saved) is None:
            keep = row_dropout.drawn_keep(rng_state, saved.shape, row_dropout.SOFTMAX_TAG, dropout_p).float()
            keep = keep * row_dropout.keep_scale(dropout_p)
        else:
            keep = reference._keep(saved, rng_state, dropout_p).float()
        p = composed.normalise(saved, mask, scale, False, torch.float32)
        dx = composed.normalise_bwd(dout.float() * keep, p, mask is not None, scale, False)
    return dx.to(saved.dtype)
