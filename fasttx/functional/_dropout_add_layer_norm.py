"""dropout_add_layer_norm: dropout, the sum with a residual, and layer norm in one."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops.backends import forced_backend
from ..ops.checks import FLOATS, described, wrong
from ..ops.dropout.rows import keep_scale
from ..ops.dropout.state import new_rng_state
from ..ops.dropout_add_layer_norm.composed import exact_keep
from ._checks import check_dropout_p, check_eps, check_mask
from ._layer_norm import apply, result_is_float32
from ._routing import PLAIN, overrides_functions, refuse_if_forced, unsupported_reason


def _check_tensors(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(wrong("input", described(input), "a Tensor"))
    if input.dim() < 1 or not input.is_floating_point():
        raise ValueError(wrong("input", described(input), "floating (..., n)"))
    names = ("residual", "weight", "bias", "row_index", "rng_state")
    for name, t in zip(names, (residual, weight, bias, row_index, rng_state)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(wrong(name, described(t), "a Tensor or None"))
        if t.device != input.device:
            raise ValueError(wrong(name, f"a tensor on {t.device}", f"{input.device}, where input is"))
    row = input.shape[-1:]
    for name, t, shape in (("residual", residual, input.shape), ("weight", weight, row), ("bias", bias, row)):
        if t is not None and (t.shape != shape or not t.is_floating_point()):
            raise ValueError(wrong(name, described(t), f"floating {tuple(shape)}"))
    check_mask(row_index, rng_state, input.shape[:-1])


def _by_torch(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """The same from torch's own functions: what the operators do not cover, and what a CPU runs."""
    z = input
    if dropout_p > 0.0 and rng_state is None:
        z = torch_functional.dropout(z, dropout_p)
    elif dropout_p > 0.0 and rng_state is not None:
        flat = None if row_index is None else row_index.reshape(-1)
        z = z * (exact_keep(z, flat, rng_state, dropout_p).to(z.dtype) * keep_scale(dropout_p))
    dtype = input.dtype
    for t in (residual, weight, bias):
        if t is not None and t.dtype != dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    if residual is not None:
        z = z + residual
    if z.dtype != dtype:
        z = z.to(dtype)
    if weight is not None and weight.dtype != dtype:
        weight = weight.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    out = torch_functional.layer_norm(z, input.shape[-1:], weight, bias, eps)
    return out if out.dtype == out_dtype else out.to(out_dtype)


def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-5,
    training: bool = True,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Layer norm of dropout(input) + residual over the last dimension, which ends each half of a BERT layer.

    .. math::
        out = \frac{z - \mathrm{E}[z]}{\sqrt{\mathrm{Var}[z] + eps}} \cdot weight + bias, \quad
        z = d \cdot input + residual, \quad d = \mathrm{keep} / (1 - \hat p)

    Args:
        input: (..., n). The kernels take float32, float16 and bfloat16.
        residual: of input's shape, added after dropout; or None.
        weight, bias: (n,), of any floating dtype; or None.
        dropout_p: probability of zeroing an element of input, in [0, 1), in steps of 1/256 on the kernels.
        eps: added to the variance, which divides by n.
        training: False turns dropout off.
        row_index: int32 or int64, of input's shape without n: which row of the dropout mask each row takes. Rows of
            equal numbers drop the same columns, so a packed batch can drop what the padded one does. None numbers them
            in order.
        rng_state: int64 (2,), the (seed, offset) of the mask. None draws one from the generator of input's device.

    Returns:
        Tensor of input's shape. Its dtype is that of the three functions called one after the other: the one that input
        and residual promote to, and float32 under autocast, except on a CPU.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range. The message names it.
        BackendError: a forced backend cannot run the call.

    Saved for backward: input, residual, weight and bias themselves, two float32 a row and two integers. Neither the sum
    nor the mask is saved. So do not overwrite input and residual before backward; autograd raises if you do.

    Numerics: the sum is float32 and never rounded to input's dtype, also under autocast. Statistics are those of
    :func:`layer_norm`. Sums are deterministic. On a CPU PyTorch's three functions run for calls without row_index and
    rng_state, with the mask of torch's dropout. On every device they run for float64, torch.func transforms,
    forward-mode AD and subclasses of Tensor.

    Source: as for :func:`layer_norm`; the mask: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    tensors = (input, residual, weight, bias)
    if any(t is not None and overrides_functions(t) for t in tensors) and has_torch_function(tensors):
        return handle_torch_function(
            dropout_add_layer_norm,
            tensors,
            *tensors,
            dropout_p=dropout_p,
            eps=eps,
            training=training,
            row_index=row_index,
            rng_state=rng_state,
        )
    if not training:
        check_dropout_p(dropout_p)  # wrong in eval mode too
        dropout_p = 0.0
    return _dropout_add_layer_norm(*tensors, dropout_p=dropout_p, eps=eps, row_index=row_index, rng_state=rng_state)


def _dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    dropout_p: float,
    eps: float,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
    backend: str | None = None,
    sure: bool = False,
) -> Tensor:
    """dropout_add_layer_norm in training, forced to `backend`; None stands for what is in force in the process.

    `sure` says that the caller has asked `unsupported_reason` about the residual, weight and bias, on a device where a
    kernel is to run, and that the numbers are those of modules: the op, which checks them again, is left to find what
    is wrong.
    """
    tensors = (input, residual, weight, bias)
    backend = backend or forced_backend()
    if (
        sure
        and backend == "auto"
        and residual is not None
        and type(input) in PLAIN
        and input.device.type != "cpu"
        and input.dtype in FLOATS
    ):
        out_dtype, device = input.dtype, input.device
        if torch.is_autocast_enabled(device.type) and result_is_float32(input):
            out_dtype = torch.float32
        if residual.dtype != out_dtype:
            out_dtype = torch.promote_types(out_dtype, residual.dtype)
        state = new_rng_state(device) if dropout_p > 0.0 else None
        return apply(*tensors, None, state, float(dropout_p), float(eps), out_dtype, backend)
    _check_tensors(*tensors, row_index, rng_state)
    check_dropout_p(dropout_p)
    check_eps(eps)
    if dropout_p == 0.0:
        rng_state, row_index = None, None
    out_dtype = torch.float32 if result_is_float32(input) else input.dtype
    if residual is not None and residual.dtype != out_dtype:
        out_dtype = torch.promote_types(out_dtype, residual.dtype)
    reason = unsupported_reason(*tensors)
    if reason is None and backend == "auto" and input.device.type == "cpu" and rng_state is None and row_index is None:
        reason = "torch's own functions are as fast on a CPU"
    if reason is None and input.shape[-1] == 0:
        reason = "rows have no element"
    numbers = float(dropout_p), float(eps), out_dtype
    if reason is not None:
        out = _by_torch(*tensors, row_index, rng_state, *numbers)
        refuse_if_forced("dropout_add_layer_norm", reason, input, backend)
        return out
    if dropout_p > 0.0 and rng_state is None:
        rng_state = new_rng_state(input.device)
    return apply(*tensors, None if row_index is None else row_index.reshape(-1), rng_state, *numbers, backend)
