"""softmax and log_softmax with torch.nn.functional's names and semantics; scale, mask and dropout are extras."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS, broadcasts, described, is_index, is_number, wrong
from ..ops.dropout.state import new_rng_state
from ..ops.exporting import called, called_backward
from ..ops.softmax.op import MAX_LEADING_DIMS, SOFTMAX, differentiable_bwd, is_composed
from ._routing import applied, overrides_functions, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(SOFTMAX)
_bwd = called_backward(SOFTMAX)


class SoftmaxFunction(torch.autograd.Function):
    """Autograd over fasttx::softmax_fwd / softmax_bwd; saves out, or x where there is dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        rng_state: Tensor | None,
        scale: float,
        dropout_p: float,
        log: bool,
        backend: str,
    ) -> Tensor:
        out = _fwd(x, mask, rng_state, scale, dropout_p, log, backend)
        ctx.save_for_backward(out if rng_state is None else x, mask, rng_state)
        ctx.options = (scale, dropout_p, log, backend)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        # grad mode is on only where the caller wants to differentiate dx (create_graph=True)
        function = differentiable_bwd if torch.is_grad_enabled() and not torch.compiler.is_compiling() else _bwd
        dx = function(dout, *ctx.saved_tensors, *ctx.options)
        return dx, None, None, None, None, None, None


_record = applied(SoftmaxFunction)


def _check_options(
    input: Tensor, dim: int, dtype: torch.dtype | None, mask: Tensor | None, scale: float, dropout_p: float
) -> None:
    """What torch's function, which has no such arguments, does not check; a dim out of range is its IndexError."""
    if not is_index(dim):
        raise TypeError(wrong("dim", repr(dim), "an int or None"))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(wrong("dtype", repr(dtype), "a torch.dtype or None"))
    if not is_number(scale):
        raise TypeError(wrong("scale", repr(scale), "a finite number"))
    if not is_number(dropout_p):
        raise TypeError(wrong("dropout_p", repr(dropout_p), "a number in [0, 1]"))
    if not math.isfinite(scale):
        raise ValueError(wrong("scale", scale, "a finite number"))
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(wrong("dropout_p", dropout_p, "a number in [0, 1]"))
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(wrong("mask", described(mask), "a Tensor or None"))
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(wrong("mask", mask.dtype, "bool (True = attend) or floating (added)"))
    if mask.device != input.device:
        raise ValueError(wrong("mask", f"a tensor on {mask.device}", f"{input.device}, where input is"))
    if not broadcasts(mask.shape, input.shape):
        allowed = f"what broadcasts to the shape of input, {tuple(input.shape)}"
        raise ValueError(wrong("mask", tuple(mask.shape), allowed))


def _by_torch(
    input: Tensor, dim: int, dtype: torch.dtype | None, mask: Tensor | None, scale: float, dropout_p: float, log: bool
) -> Tensor:
    """The same from torch's own functions: what the operators do not cover."""
    own = torch.log_softmax if log else torch.softmax
    s = input if dtype is None else input.to(dtype)
    if scale != 1.0:
        s = s * scale
    if mask is None:
        out = own(s, dim)
    else:
        s = torch.where(mask, s, -math.inf) if mask.dtype == torch.bool else (s + mask).to(s.dtype)
        nothing = (s == -math.inf).all(dim, keepdim=True)
        out = own(s.masked_fill(nothing, 0.0), dim).masked_fill(nothing, -math.inf if log else 0.0)
    return torch.dropout(out, dropout_p, True) if dropout_p > 0.0 else out


def _to_torch(
    input: Tensor, dim: int, dtype: torch.dtype | None, mask: Tensor | None, plain: bool, backend: str
) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where the operator does."""
    n_dims = input.dim()
    if not isinstance(dim, int) or isinstance(dim, bool) or not -n_dims <= dim < n_dims:
        return "input has no dim, or dim is no int in range"
    if plain and is_composed(input, backend):
        return "the operator is torch's function here"
    if plain and backend == "auto" and dim % n_dims != n_dims - 1:
        return "torch has a kernel for strided columns; ours needs a transposed copy"
    reason = unsupported_reason(input, mask)
    if reason is not None:
        return reason
    if (input.dtype if dtype is None else dtype) not in FLOATS:
        return "a dtype other than float32, float16 and bfloat16"
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        return "mask requires a gradient"
    return None


def _probabilities(
    fasttx_fn: Callable[..., Tensor],
    torch_fn: Callable[..., Tensor],
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
    mask: Tensor | None,
    scale: float,
    dropout_p: float,
    backend: str,
) -> Tensor:
    """What softmax (`fasttx_fn`) and log_softmax have in common; `torch_fn` is torch.nn.functional's function."""
    name = fasttx_fn.__name__
    log = name == "log_softmax"
    plain = mask is None and scale == 1.0 and dropout_p == 0.0
    overridden = overrides_functions(input) or (mask is not None and overrides_functions(mask))
    if overridden and has_torch_function((input, mask)):
        if plain:
            out = torch_fn(input, dim, stacklevel + 2, dtype)
            refuse_if_forced(name, "a subclass of Tensor that overrides torch's functions", input, backend)
            return out
        options = {"mask": mask, "scale": scale} if log else {"mask": mask, "scale": scale, "dropout_p": dropout_p}
        return handle_torch_function(fasttx_fn, (input, mask), input, dim, stacklevel, dtype, **options)
    if not isinstance(input, Tensor):
        if plain:
            return torch_fn(input, dim, stacklevel + 2, dtype)  # which says what is wrong
        raise TypeError(wrong("input", described(input), "a Tensor"))
    if dim is None:
        dim = torch_functional._get_softmax_dim(name, input.dim(), stacklevel + 1)  # type: ignore[attr-defined]
    if not plain:
        _check_options(input, dim, dtype, mask, scale, dropout_p)
    reason = _to_torch(input, dim, dtype, mask, plain, backend)
    if reason is not None:
        if plain:
            out = (torch.log_softmax if log else torch.softmax)(input, dim, dtype=dtype)
        else:
            out = _by_torch(input, dim, dtype, mask, scale, dropout_p, log)
        refuse_if_forced(name, reason, input, backend)
        return out

    n_dims = input.dim()
    last = dim % n_dims == n_dims - 1
    device_type = input.device.type
    if dtype is not None:
        x = input.to(dtype)
    elif device_type != "cpu" and torch.is_autocast_enabled(device_type):
        x = input.float()  # autocast's rule for softmax on every device but the CPU, where it leaves the dtype alone
    else:
        x = input
    if mask is not None:
        mask = mask[(None,) * (n_dims - mask.dim())]
    if not last:
        x = x.movedim(dim, -1)
        mask = None if mask is None else mask.movedim(dim, -1)
    shape = x.shape
    if mask is not None and n_dims > MAX_LEADING_DIMS + 1:
        x, mask = x.flatten(0, -2), mask.expand(shape).flatten(0, -2)

    rng_state = new_rng_state(x.device) if dropout_p > 0.0 else None
    if records_gradients(x):
        out = _record(x, mask, rng_state, float(scale), float(dropout_p), log, backend)
    else:
        out = _fwd(x, mask, rng_state, float(scale), float(dropout_p), log, backend)
    if out.shape != shape:
        out = out.view(shape)
    return out if last else out.movedim(-1, dim)


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
) -> Tensor:
    r"""softmax(scale * input + mask) over `dim`, then dropout; without these options torch.nn.functional.softmax.

    .. math:: out_i = d_i \frac{\exp(s_i)}{\sum_j \exp(s_j)}, \quad s = scale \cdot input + mask

    Args:
        input: any shape. The kernels take float32, float16 and bfloat16; torch's own function takes other dtypes.
        dim: the dimension that sums to 1. None chooses as torch does, with its warning.
        dtype: input is cast to it first.
        mask: bool (True = attend) or floating (added to the scores), broadcastable to input.
        scale: multiplies input before the mask is added.
        dropout_p: probability of zeroing an element of the result, in [0, 1], in steps of 1/256 on the kernels. The
            others are scaled up. There is no `training`: pass 0.0 in evaluation.

    Returns:
        Tensor of input's shape, in `dtype` if given, else in input's; as in torch, float32 under autocast, except on a
        CPU.

    Raises:
        TypeError, ValueError: mask, scale or dropout_p has a wrong type, dtype, shape, device or range, or dim or dtype
            beside them a wrong type. The message names it.
        IndexError: dim is out of range.
        BackendError: a forced backend cannot run the call.

    Saved for backward: the result, or input where there is dropout; the mask and two integers.

    Numerics: computes in float32. A row in which the mask hides everything gives zeros; a row of -inf without a mask
    gives NaN, as in torch. PyTorch's own operators run for float64, dims other than the last (unless mask, scale or
    dropout is given or a backend forced), torch.func transforms, forward-mode AD, NestedTensor, gradients of the mask,
    and double backward.

    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, section 3, for long rows.
    """
    torch_fn = torch_functional.softmax
    return _probabilities(softmax, torch_fn, input, dim, _stacklevel, dtype, mask, scale, dropout_p, forced_backend())


def _masked_softmax(
    input: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """softmax over the last dim, forced to `backend`; None stands for what is in force in the process."""
    torch_fn, backend = torch_functional.softmax, backend or forced_backend()
    return _probabilities(softmax, torch_fn, input, -1, 3, None, mask, scale, dropout_p, backend)


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    r"""log(softmax(scale * input + mask)) over `dim`; without these options torch.nn.functional.log_softmax.

    .. math:: out_i = s_i - \log \sum_j \exp(s_j), \quad s = scale \cdot input + mask

    Args:
        input, dim, dtype, mask, scale: as in :func:`softmax`.

    Returns:
        Tensor of input's shape, in `dtype` if given, else in input's; as in torch, float32 under autocast, except on a
        CPU. -inf where the mask hides an element.

    Raises:
        TypeError, ValueError, IndexError, BackendError: as :func:`softmax` does.

    Saved for backward: the result and the mask.

    Numerics: computes (s - max) - log(sum) in float32, so large scores lose nothing. Masked elements are constants and
    have no gradient.

    Source: as for :func:`softmax`.
    """
    torch_fn = torch_functional.log_softmax
    return _probabilities(log_softmax, torch_fn, input, dim, _stacklevel, dtype, mask, scale, 0.0, forced_backend())
