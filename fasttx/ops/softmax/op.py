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
from ..dropout import rows as row_dropout
from ..registry import Direction, Impl, Op

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
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float,
    log: bool,
) -> None:  # fmt: skip
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


# ----------------------------------------------------------------------------------- composition of PyTorch's operators
# The underscored operators are those that torch.softmax itself calls; autocast leaves them alone, so that the result
# has the dtype that the fake promises whatever context the op is called in.


def _scores(x: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    s = x.to(dtype)
    if scale != 1.0:
        s = s * scale
    if mask is None:
        return s
    return torch.where(mask, s, -math.inf) if mask.dtype == torch.bool else s + mask.to(dtype)


def _normalise(x: Tensor, mask: Tensor | None, scale: float, log: bool, dtype: torch.dtype) -> Tensor:
    """p or log p in `dtype`, from differentiable operators."""
    s = _scores(x, mask, scale, dtype)
    function = torch._log_softmax if log else torch._softmax
    if mask is None or s.shape[-1] == 0:
        return function(s, -1, False)
    nothing = s.amax(-1, keepdim=True) == -math.inf
    return function(s.masked_fill(nothing, 0.0), -1, False).masked_fill(nothing, -math.inf if log else 0.0)


def _normalise_bwd(dout: Tensor, out: Tensor, masked: bool, scale: float, log: bool) -> Tensor:
    """dx from the gradient and value of p or log p, both in the dtype of arithmetic, from differentiable operators."""
    if log:
        if masked:
            constant = out == -math.inf
            dout = dout.masked_fill(constant, 0.0)
        ds = torch._log_softmax_backward_data(dout, out, -1, out.dtype)
    else:
        ds = torch._softmax_backward_data(dout, out, -1, out.dtype)
    return ds if scale == 1.0 else ds * scale


def _dropped(p: Tensor, rng_state: Tensor, dropout_p: float) -> Tensor:
    keep = row_dropout.drawn_keep(rng_state, p.shape, row_dropout.SOFTMAX_TAG, dropout_p)
    return p * (keep.to(p.dtype) * row_dropout.keep_scale(dropout_p))


def _torch(
    x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> Tensor:
    if mask is None and scale == 1.0 and rng_state is None:
        return (torch._log_softmax if log else torch._softmax)(x, -1, False).contiguous()
    p = _normalise(x, mask, scale, log, torch.float32)
    if rng_state is not None:
        p = _dropped(p, rng_state, dropout_p)
    return p.to(x.dtype).contiguous()


def _torch_bwd(
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float,
    log: bool,
) -> Tensor:  # fmt: skip
    if rng_state is None:
        if mask is None and scale == 1.0:
            return _normalise_bwd(dout, saved, False, 1.0, log).contiguous()
        dx = _normalise_bwd(dout.float(), saved.float(), mask is not None, scale, log)
    else:
        p = _normalise(saved, mask, scale, False, torch.float32)
        dx = _normalise_bwd(_dropped(dout.float(), rng_state, dropout_p), p, mask is not None, scale, False)
    return dx.to(saved.dtype).contiguous()


# --------------------------------------------------------------------------------------------------- float64 reference


def _reference_keep(x: Tensor, rng_state: Tensor, dropout_p: float) -> Tensor:
    rows = torch.arange(x.shape[:-1].numel(), device=x.device)
    keep = row_dropout.row_keep(rng_state, rows, x.shape[-1], row_dropout.SOFTMAX_TAG, dropout_p)
    return keep.reshape(x.shape).double() * row_dropout.keep_scale(dropout_p)


def _reference_p(x: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, log-sum-exp (0 where a masked row has none) and probabilities."""
    s = x.double() * scale
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else s + mask.double()
    lse = torch.logsumexp(s, -1, keepdim=True)
    if mask is None:
        lse = torch.where(lse == -math.inf, math.nan, lse)
    else:
        lse = torch.where(lse == -math.inf, 0.0, lse)
    return s, lse, (s - lse).exp()


def _reference(
    x: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float, log: bool
) -> Tensor:
    s, lse, p = _reference_p(x, mask, scale)
    if log:
        return s - lse
    return p if rng_state is None else p * _reference_keep(x, rng_state, dropout_p)


def _reference_bwd(
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float,
    log: bool,
) -> Tensor:  # fmt: skip
    dp = dout.double()
    if log:
        out = saved.double()
        if mask is not None:
            dp = torch.where(out == -math.inf, 0.0, dp)
        return scale * (dp - out.exp() * dp.sum(-1, keepdim=True))
    if rng_state is None:
        p = saved.double()
    else:
        p = _reference_p(saved, mask, scale)[2]
        dp = dp * _reference_keep(saved, rng_state, dropout_p)
    return scale * p * (dp - (dp * p).sum(-1, keepdim=True))


# ------------------------------------------------------------------------------------------------------ cost and rows


def _mask_bytes(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.numel() * mask.element_size()


def _cost(x: Tensor, mask: Tensor | None, *_: object) -> tuple[float, float]:
    """Scale, mask, max, subtract, exp, sum, divide: 7 per element; x and mask read once, out written once."""
    return 7.0 * x.numel(), 2.0 * x.numel() * x.element_size() + _mask_bytes(mask)


def _cost_bwd(
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, *_: object
) -> tuple[float, float]:
    """Product, sum, subtract, product, scale: 5 per element, 12 where p is recomputed; two reads, one write."""
    recompute = rng_state is not None
    return (12.0 if recompute else 5.0) * saved.numel(), 3.0 * saved.numel() * saved.element_size() + (
        _mask_bytes(mask) if recompute else 0
    )


_ARGUMENTS = "Tensor? mask, Tensor? rng_state, float scale, float dropout_p, bool log, str backend"

SOFTMAX = Op(
    "softmax",
    about="softmax and log-softmax of rows of any length; scale, mask, dropout",
    fwd=Direction(f"(Tensor x, {_ARGUMENTS}) -> Tensor", _check, _fake, _torch, _reference, ("x",), _cost),
    bwd=Direction(
        f"(Tensor dout, Tensor saved, {_ARGUMENTS}) -> Tensor",
        _check_bwd,
        _fake_bwd,
        _torch_bwd,
        _reference_bwd,
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
    dout: Tensor, saved: Tensor, mask: Tensor | None, rng_state: Tensor | None, scale: float, dropout_p: float,
    log: bool, backend: str,
) -> Tensor:  # fmt: skip
    """What softmax_bwd computes, from operators that can be differentiated again (double backward).

    With dropout the mask is that of the backend that forward ran on.
    """
    if rng_state is None:
        dx = _normalise_bwd(dout.float(), saved.float(), mask is not None, scale, log)
    else:
        if SOFTMAX.choice(backend, saved) is None:
            keep = row_dropout.drawn_keep(rng_state, saved.shape, row_dropout.SOFTMAX_TAG, dropout_p).float()
            keep = keep * row_dropout.keep_scale(dropout_p)
        else:
            keep = _reference_keep(saved, rng_state, dropout_p).float()
        p = _normalise(saved, mask, scale, False, torch.float32)
        dx = _normalise_bwd(dout.float() * keep, p, mask is not None, scale, False)
    return dx.to(saved.dtype)
