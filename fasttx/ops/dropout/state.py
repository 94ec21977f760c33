"""The state of dropout, (seed, offset), drawn from the device's own generator: ``fasttx::rng_state``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..library import LIB

# device by keyword: where torch.compile recomputes under a checkpoint it looks there for the generator to rewind
LIB.define(
    "rng_state(*, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
)


def _rng_state_fake(*, device: torch.device) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device)


def _rng_state(*, device: torch.device) -> Tensor:
    """(seed, offset) from the device's own generator: as reproducible as torch.manual_seed, safe in CUDA graphs."""
    return torch.empty(2, dtype=torch.int64, device=device).random_()


LIB.impl("rng_state", _rng_state, "CompositeExplicitAutograd")
torch.library.register_fake("fasttx::rng_state", _rng_state_fake, lib=LIB)


def new_rng_state(device: torch.device) -> Tensor:
    """A fresh dropout state: int64 (2,) on `device`, (seed, offset), which kernels read by pointer."""
    if torch.compiler.is_exporting():  # a program that is to run without fasttx
        return torch.randint(2**62, (2,), device=device)
    return torch.ops.fasttx.rng_state.default(device=device)
