"""What launchers ask of the device, and of PyTorch's settings of it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def arch_of(device: torch.device) -> int:
    """Compute capability times ten, of the device whose row of the table applies (the interpreter: 90)."""
    return capability(device.index) if device.type == "cuda" else 90


def precision_of(q: Tensor) -> str:
    """How fp32 products are rounded, as torch.backends.cuda.matmul asks; 2-byte types know one way only."""
    if q.dtype != torch.float32:
        return "tf32"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # reading allow_tf32 raises once a caller has used this newer setting
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"
