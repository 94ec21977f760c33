"""One measurement of an op: its arguments, and the peers on the same values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .peers import Peers

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class OpCase:
    """Arguments of ``<op>_fwd`` without ``backend``, and the peers on the same values.

    `step` has forward and backward timed as one besides: a loss whose peers make their gradient in forward. `given`
    holds arguments of ``<op>_bwd`` by name, where autograd asks for less than every gradient.
    """

    args: list[Any]
    peers: Peers
    step: bool = False
    given: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """One named measurement of one op; `dropout` says that the reference's mask has to be drawn anew for the bound."""

    name: str
    op: str
    build: Callable[[torch.device, str, int], OpCase]
    dropout: bool = False


def randn(device: torch.device, dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)
