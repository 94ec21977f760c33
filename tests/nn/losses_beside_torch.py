"""What the tests of the losses share: torch's peers, and the comparison of value and gradient with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from fasttx.functional import _binary_cross_entropy, _cross_entropy
from fasttx.ops.registry import LAUNCHES

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
CROSS_ENTROPY = (_cross_entropy.cross_entropy, torch_functional.cross_entropy)
BCE = (_binary_cross_entropy.binary_cross_entropy_with_logits, torch_functional.binary_cross_entropy_with_logits)
PAIRS = {"cross_entropy": CROSS_ENTROPY, "bce": BCE}


def launched(name: str) -> int:
    return sum(n for (op, _), n in LAUNCHES.items() if op.startswith(name))


def gradients(fn: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    x = input.detach().requires_grad_()
    loss = fn(x, *args, **options)
    scale = torch.arange(1, loss.numel() + 1, device=x.device).view(loss.shape).to(loss.dtype)
    (dx,) = torch.autograd.grad(loss, x, scale)
    return loss.detach(), dx


def same(fn: Callable[..., Tensor], peer: Callable[..., Tensor], input: Tensor, *args: Any, **options: Any) -> None:
    """Loss and gradient have torch's shape, dtype and, to a rounding of that dtype, values."""
    (loss, dx), (expected, expected_dx) = (
        gradients(fn, input, *args, **options),
        gradients(peer, input, *args, **options),
    )
    tol = TOLERANCE[input.dtype]
    torch.testing.assert_close(loss, expected, rtol=tol, atol=tol, equal_nan=True)
    torch.testing.assert_close(dx, expected_dx, rtol=tol, atol=tol * max(1.0, float(loss.numel())), equal_nan=True)


def tokens(
    device: torch.device, *shape: int, classes: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits (N, C, d1, ...) as a model gives them, the classes innermost in memory, and targets, some ignored."""
    target = torch.randint(classes, shape)
    target.view(-1)[1::5] = -100
    logits = torch.randn(*shape, classes).movedim(-1, 1)
    return logits.to(device, dtype), target.to(device)
