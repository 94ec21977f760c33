"""Which calls our operators cover; everything else goes to torch's own function inside each drop-in."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

HALF_AND_SINGLE = frozenset((torch.float32, torch.float16, torch.bfloat16))


def _overrides_functions(kind: type) -> bool:
    """Whether torch's functions hand tensors of this class to its own ``__torch_function__``, or keep the class."""
    return kind.__torch_function__ is not torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]


def covered(*tensors: Tensor | None) -> bool:
    """Whether the operators of fasttx may get these tensors in the present context.

    They may not within ``torch.func`` transforms (grad, vmap, jvp, ...) and forward-mode AD, for which they have no
    rule; nor get a NestedTensor, DTensor or other subclass of Tensor, a sparse, quantised or meta tensor, or another
    floating type than float32, float16 and bfloat16 (float64 and complex). Integer and bool tensors pass. All tensors
    must be on one device. ``torch.compile`` evaluates this while it traces, also inside a transform.

    Args:
        tensors: what the call was given; None stands for an absent argument.
    """
    # _are_functorch_transforms_active is the one query that dynamo, too, answers rightly inside a traced transform.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    device = None
    for t in tensors:
        if t is None:
            continue
        if not isinstance(t, Tensor):  # torch's function words the error
            return False
        if t.is_floating_point():
            if t.dtype not in HALF_AND_SINGLE:
                return False
        elif t.is_complex() or t.is_quantized:
            return False
        if type(t) not in (Tensor, torch.nn.Parameter) and _overrides_functions(type(t)):
            return False
        if t.device.type == "meta" or t.layout is not torch.strided or t.is_nested or is_traceable_wrapper_subclass(t):
            return False
        if device is None:
            device = t.device
        elif t.device != device:
            return False
    return True
