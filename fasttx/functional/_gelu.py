"""gelu with torch.nn.functional's name and semantics, and linear_gelu: a product, then bias, GELU, dropout in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..ops.backends import forced_backend
from ..ops.bias_gelu.composed import approximation, differentiable, exact_keep
from ..ops.bias_gelu.op import BIAS_GELU, keep_of
from ..ops.checks import FLOATS, described, wrong
from ..ops.dropout.rows import keep_scale
from ..ops.dropout.state import new_rng_state
from ..ops.exporting import called, called_backward
from ._checks import check_dropout_p, check_mask
from ._routing import aliases, applied, overrides_functions, records_gradients, refuse_if_forced, unsupported_reason

_fwd = called(BIAS_GELU)
_bwd = called_backward(BIAS_GELU)


class BiasGELUFunction(torch.autograd.Function):
    """Autograd over fasttx::bias_gelu_fwd / _bwd; saves x, bias and, with dropout, two integers."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        row_index: Tensor | None,
        rng_state: Tensor | None,
        dropout_p: float,
        tanh: bool,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x, bias, row_index, rng_state)
        ctx.options = (dropout_p, tanh, backend)
        return _fwd(x, bias, row_index, rng_state, dropout_p, tanh, backend)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, row_index, rng_state = ctx.saved_tensors
        dropout_p, tanh, backend = ctx.options
        needs = ctx.needs_input_grad[:2]
        rest = (None,) * 5
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph: to be differentiated again
            keep = None if rng_state is None else keep_of(x, row_index, rng_state, dropout_p, backend)
            x, bias = aliases(x, bias)
            out = differentiable(x, bias, keep, dropout_p, tanh)
            inputs = [t for t, need in zip((x, bias), needs) if need]
            found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True))
            return (*(next(found) if need else None for need in needs), *rest)
        needs_dx, needs_dbias = needs
        dx, dbias = _bwd(dout, x, bias, row_index, rng_state, dropout_p, tanh, needs_dx, needs_dbias, backend)
        return (dx if needs_dx else None, dbias if needs_dbias else None, *rest)


_record = applied(BiasGELUFunction)


def _apply(
    x: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    tanh: bool,
    backend: str,
) -> Tensor:
    arguments = (x, bias, row_index, rng_state, dropout_p, tanh, backend)
    if records_gradients(x, bias):
        return _record(*arguments)
    return _fwd(*arguments)


# --------------------------------------------------------------------------------------------------------------- gelu


def _in_rows(x: Tensor) -> bool:
    """Whether x lies by rows at one stride with columns at stride 1, so that the kernel reads it in place."""
    if x.is_contiguous():
        return True
    if x.stride(-1) != 1:
        return False
    return all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2))


def _gelu_to_torch(input: Tensor, approximate: str, backend: str) -> str | None:
    """Why torch's own function takes this call, a wrong one included; None where the operator does."""
    if not isinstance(input, Tensor):
        return "input is no Tensor"
    if backend == "torch" or (backend == "auto" and not BIAS_GELU.has_kernel(input.device, input.dtype)):
        return "the operator is torch's function here"
    measured = BIAS_GELU.own_is_faster(input) if backend == "auto" else ""
    if measured:
        return measured
    reason = unsupported_reason(input)
    if reason is not None:
        return reason
    if input.dtype not in FLOATS:
        return "input is not floating"
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        return "approximate is neither 'none' nor 'tanh'"
    if backend == "auto" and input.dim() > 0 and not _in_rows(input):
        return "torch has a kernel for any strides; ours needs a copy by rows"
    if not torch.compiler.is_compiling() and input.numel() == 0:  # sizes may be unknown there
        return "input has no element"
    return None


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    r"""GELU, exact or by tanh; torch.nn.functional.gelu.

    .. math::
        out = x \, \Phi(x) = \tfrac{1}{2} x \left(1 + \mathrm{erf}(x / \sqrt 2)\right), \quad
        \text{with "tanh"} \quad \tfrac{1}{2} x \left(1 + \tanh\left(\sqrt{2 / \pi} \, (x + 0.044715 x^3)\right)\right)

    Args:
        input: x, any shape. The kernels take float32, float16 and bfloat16.
        approximate: "none" or "tanh"; a keyword, as in torch.

    Returns:
        Tensor of input's shape and dtype.

    Raises:
        BackendError: a forced backend cannot run the call.
        Every wrong call raises torch's own error.

    Saved for backward: input.

    Numerics: computes in float32. Nothing overflows in either tail, so the derivative of the tanh form is finite for
    every finite number. Infinities and NaN give what they give in torch. Torch's own function runs for float64,
    torch.func transforms, forward-mode AD, subclasses of Tensor, tensors that do not lie by rows (unless a backend is
    forced), and every call on a CPU. Double backward differentiates torch's operators.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2.
    """
    backend = forced_backend()
    reason = _gelu_to_torch(input, approximate, backend)
    if reason is not None:
        out = torch_functional.gelu(input, approximate=approximate)
        refuse_if_forced("gelu", reason, input, backend)
        return out
    if input.dim() == 0:
        return _apply(input.view(1), None, None, None, 0.0, approximate == "tanh", backend).view(())
    return _apply(input, None, None, None, 0.0, approximate == "tanh", backend)


# -------------------------------------------------------------------------------------------------------- linear_gelu


def _check_tensors(
    input: Tensor, weight: Tensor, bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None
) -> None:
    for name, given in (("input", input), ("weight", weight)):
        if not isinstance(given, Tensor):
            raise TypeError(wrong(name, described(given), "a Tensor"))
    if input.dim() < 1 or not input.is_floating_point():
        raise ValueError(wrong("input", described(input), "floating (..., in_features)"))
    for name, t in (("weight", weight), ("bias", bias), ("row_index", row_index), ("rng_state", rng_state)):
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(wrong(name, described(t), "a Tensor or None"))
        if t.device != input.device:
            raise ValueError(wrong(name, f"a tensor on {t.device}", f"{input.device}, where input is"))
    if weight.dim() != 2 or weight.shape[1] != input.shape[-1]:
        allowed = f"(out_features, {input.shape[-1]}), as input is {tuple(input.shape)}"
        raise ValueError(wrong("weight", tuple(weight.shape), allowed))
    mixed = torch.is_autocast_enabled(input.device.type)  # which casts both
    if not weight.is_floating_point() or (weight.dtype != input.dtype and not mixed):
        raise ValueError(wrong("weight", weight.dtype, f"{input.dtype}, as input is"))
    if bias is not None:
        if bias.shape != weight.shape[:1] or not bias.is_floating_point():
            raise ValueError(wrong("bias", described(bias), f"floating ({weight.shape[0]},)"))
        if bias.dtype not in (input.dtype, torch.float32) and not mixed:
            raise ValueError(wrong("bias", bias.dtype, f"{input.dtype}, as input is, or torch.float32"))
    check_mask(row_index, rng_state, input.shape[:-1])


def _by_torch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    approximate: str,
) -> Tensor:
    """The same from torch's own functions: what the operators do not cover, and what a CPU runs."""
    if bias is None or bias.dtype == input.dtype or torch.is_autocast_enabled(input.device.type):
        z = torch_functional.linear(input, weight, bias)
        out = torch_functional.gelu(z, approximate=approximate)
    else:
        z = torch_functional.linear(input, weight)
        out = torch_functional.gelu(z + bias, approximate=approximate).to(z.dtype)
    if dropout_p > 0.0 and rng_state is None and row_index is None:
        return torch_functional.dropout(out, dropout_p)
    if dropout_p > 0.0:
        state = new_rng_state(out.device) if rng_state is None else rng_state
        flat = None if row_index is None else row_index.reshape(-1)
        out = out * (exact_keep(out, flat, state, dropout_p).to(out.dtype) * keep_scale(dropout_p))
    return out


def linear_gelu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    approximate: str = "none",
    dropout_p: float = 0.0,
    training: bool = True,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""dropout(gelu(linear(input, weight, bias))): the first half of a BERT layer's MLP.

    .. math:: out = d \cdot \mathrm{gelu}(x W^T + b), \quad d = \mathrm{keep} / (1 - \hat p)

    Args:
        input: x, (..., in_features). The kernels take float32, float16 and bfloat16.
        weight: W, (out_features, in_features), in input's dtype (under autocast in any).
        bias: b, (out_features,), in input's dtype or float32 (under autocast in any), or None.
        approximate: "none" or "tanh", as in :func:`gelu`.
        dropout_p: probability of zeroing an element of the result, in [0, 1), in steps of 1/256 on the kernels.
        training: False turns dropout off.
        row_index: int32 or int64, of input's shape without in_features: which row of the dropout mask each row takes.
            Rows of equal numbers drop the same columns, so a packed batch can drop what the padded one does. None
            numbers them in order.
        rng_state: int64 (2,), the (seed, offset) of the mask. None draws one from the generator of input's device.

    Returns:
        Tensor (..., out_features) of input's dtype, under autocast of autocast's.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape, device or range. The message names it.
        BackendError: a forced backend cannot run the call.

    Saved for backward: input and weight, the product without its bias, bias and two integers. Neither the sum nor the
    mask is saved.

    Numerics: PyTorch computes the product and rounds it to its dtype. What follows is computed in float32, with a
    float32 bias as it is; under autocast PyTorch would round that first. dbias is a float32 sum of numbers that are not
    rounded, and deterministic. PyTorch's own functions run for calls without row_index and rng_state where no kernel
    can (a CPU), with the mask of torch's dropout. On every device they run for float64, torch.func transforms,
    forward-mode AD and subclasses of Tensor.

    Source: as for :func:`gelu`; the mask: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    tensors = (input, weight, bias)
    if any(t is not None and overrides_functions(t) for t in tensors) and has_torch_function(tensors):
        return handle_torch_function(
            linear_gelu,
            tensors,
            *tensors,
            approximate=approximate,
            dropout_p=dropout_p,
            training=training,
            row_index=row_index,
            rng_state=rng_state,
        )
    if not training:
        check_dropout_p(dropout_p)  # wrong in eval mode too
        dropout_p = 0.0
    return _linear_gelu(
        *tensors, approximate=approximate, dropout_p=dropout_p, row_index=row_index, rng_state=rng_state
    )


def _linear_gelu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    approximate: str,
    dropout_p: float = 0.0,
    row_index: Tensor | None = None,
    rng_state: Tensor | None = None,
    backend: str | None = None,
    sure: bool = False,
) -> Tensor:
    """linear_gelu in training, forced to `backend`; None stands for what is in force in the process.

    `sure` says that the caller has asked `unsupported_reason` about the tensors, which belong to a module.
    """
    tensors = (input, weight, bias)
    backend = backend or forced_backend()
    if sure and backend == "auto":
        reason = None
    else:
        _check_tensors(*tensors, row_index, rng_state)
        if approximate not in (approximation(False), approximation(True)):
            raise ValueError(wrong("approximate", repr(approximate), "'none' or 'tanh'"))
        check_dropout_p(dropout_p)
        if dropout_p == 0.0:
            rng_state, row_index = None, None
        reason = unsupported_reason(*tensors)
    if reason is None and backend == "auto" and rng_state is None and row_index is None:
        reason = (
            None
            if BIAS_GELU.has_kernel(input.device, input.dtype)
            else "torch's own functions are as fast without a kernel"
        )
    if reason is None and weight.shape[0] == 0:
        reason = "rows have no element"
    if reason is not None:
        out = _by_torch(*tensors, row_index, rng_state, float(dropout_p), approximate)
        refuse_if_forced("linear_gelu", reason, out, backend)
        return out
    x = torch_functional.linear(input, weight)
    if bias is not None and bias.dtype not in (x.dtype, torch.float32):  # under autocast
        bias = bias.float()
    if dropout_p > 0.0 and rng_state is None:
        rng_state = new_rng_state(x.device)
    flat = None if row_index is None else row_index.reshape(-1)
    return _apply(x, bias, flat, rng_state, float(dropout_p), approximate == "tanh", backend)
