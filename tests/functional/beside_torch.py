"""What the tests of attention share: torch's function, results and gradients of both, packed inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

torch_attention = torch_functional.scaled_dot_product_attention
OP: tuple[str, ...] = ("auto", "torch")
"""auto leaves to torch what it runs as fast on a CPU; "torch" forces the op, in its composition."""


def both(
    inputs: tuple[Tensor, ...], fasttx_fn: Callable[..., Any], torch_fn: Callable[..., Any], dout: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """(fasttx_fn's, torch_fn's) for the output and each gradient."""
    found = []
    for function in (fasttx_fn, torch_fn):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        if dout is None:
            dout = torch.randn_like(out)
        found.append((out, *torch.autograd.grad(out, leaves, dout)))
    return list(zip(*found, strict=True))


def packed(*lengths: int, heads: int = 3, d: int = 16) -> tuple[Tensor, Tensor]:
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return torch.randn(sum(lengths), heads, d), cu
