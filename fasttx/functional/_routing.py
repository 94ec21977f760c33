"""Which calls our operators cover; everything else goes to torch's own function inside each drop-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..ops import decisions
from ..ops.backends import BackendError, forced_backend
from ..ops.checks import FLOATS

OWN = "torch's own"
"""The choice of a drop-in that hands a call to torch's function of its name."""

PLAIN = (Tensor, Parameter, FakeTensor)
"""Classes of which torch's functions keep nothing but the values."""
EXPORTED = "an exported program holds PyTorch's own operators where no kernel runs"
META = "a meta tensor"
DERIVATIVES = "a torch.func transform or forward-mode AD is active"
OTHER_FLOATS = "a floating type other than float32, float16 and bfloat16"
_disabled = torch._C._disabled_torch_function_impl


def overrides_functions(x: object) -> bool:
    """Whether torch's functions hand `x` to ``__torch_function__`` of its class, or keep its class.

    torch.overrides.has_torch_function counts function modes besides, which are about every call and every tensor
    (``torch.set_default_device`` sets one), and leaves out what DisableTorchFunctionSubclass turns off.
    """
    return type(x) not in PLAIN and getattr(type(x), "__torch_function__", _disabled) is not _disabled


def derivatives_active() -> bool:
    """Whether the call stands in a torch.func transform or in forward-mode AD."""
    # _are_functorch_transforms_active is the one query that dynamo, too, answers rightly inside a traced transform.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _uncovered_class(t: Tensor) -> str | None:
    if not isinstance(t, Tensor):
        return "an argument is no Tensor"  # torch's function words the error
    if overrides_functions(t) or is_traceable_wrapper_subclass(t):
        return "a subclass of Tensor that overrides torch's functions"
    return None


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """Why the operators of fasttx may not get these tensors in the present context; None where they may.

    They may not within ``torch.func`` transforms (grad, vmap, jvp, ...) and forward-mode AD, for which they have no
    rule; nor get a NestedTensor, DTensor or other subclass of Tensor, a sparse, quantised or meta tensor, or another
    floating type than float32, float16 and bfloat16 (float64 and complex). Integer and bool tensors pass. All tensors
    must be on one device. A function mode (``torch.set_default_device`` sets one) is no obstacle. ``torch.compile``
    evaluates this while it traces, also inside a transform; hence constant reasons.

    Args:
        tensors: what the call was given; None stands for an absent argument.
    """
    # derivatives_active(), without a frame: a layer asks ten times
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return DERIVATIVES
    device = None
    for t in tensors:
        if t is None:
            continue
        if type(t) not in PLAIN:
            reason = _uncovered_class(t)
            if reason is not None:
                return reason
        if t.dtype not in FLOATS and (t.is_floating_point() or t.is_complex() or t.is_quantized):
            return OTHER_FLOATS
        if t.layout is not torch.strided or t.is_nested:
            return "a nested or sparse tensor"
        if t.is_meta:
            return META
        if device is None:
            device = t.device
        elif t.device != device:
            return "tensors on several devices"
    return None


def records_gradients(*tensors: Tensor | None) -> bool:
    """Whether autograd is to record a call of these; an exported program holds no backward."""
    if not torch.is_grad_enabled() or torch.compiler._is_exporting_flag:
        return False
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


def applied(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for calls outside of torch.func transforms, without the frames in which it would unwrap their
    tensors: two, and one more for every argument."""
    direct = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def apply(*arguments: Any) -> Any:
        return function.apply(*arguments) if torch.compiler.is_dynamo_compiling() else direct(*arguments)

    return apply


def aliases(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The same tensors as inputs of their own, for a backward that is to be differentiated again.

    One that is computed from another, or is the other, has a gradient for each use: x of a residual sum comes from the
    residual, hidden states from the embeddings that a head is tied to.
    """
    return tuple([None if t is None else t.view_as(t) for t in tensors])


def refuse_if_forced(function: str, reason: str, input: Tensor, backend: str | None = None) -> None:
    """Ends a call that torch's own function has computed, if a backend is forced that never ran.

    To be called after torch's function, which raises its own errors for a wrong call. Where there is nothing to launch,
    no element and no data, any backend counts as run, as in the table of ops.

    Args:
        function: the name the user called.
        reason: why the kernels cannot run this call.
        input: its first tensor.
        backend: what the call was asked for; None stands for what is in force.

    Raises:
        BackendError: ``"cuda"`` or ``"triton"`` is forced.
    """
    if decisions.records:
        decisions.note(function, OWN, reason)
    backend = backend or forced_backend()
    if backend in ("auto", "torch") or input.is_meta or input.numel() == 0:
        return
    raise BackendError(f"{function}: backend '{backend}' cannot run this call: {reason}")
