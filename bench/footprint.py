"""Memory and kernel launches of one call on a GPU; both are unknown ("" in a table) on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fasttx.ops.cost import bytes_of

from .timer import Call, synchronize


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """What an arm holds between two steps: weights, buffers and the optimizer's state."""
    states = optimizer.state.values() if optimizer is not None else ()
    return bytes_of(*model.parameters(), *model.buffers(), *(value for state in states for value in state.values()))


def peak_mib(call: Call, device: torch.device, held: int) -> float | str:
    """The allocator's peak during one call, without what other arms hold beside the `held` bytes of this one."""
    if device.type != "cuda":
        return ""
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(0)
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before + held) / 2**20


def launches(call: Call, device: torch.device) -> int | str:
    """Kernels that one call runs on the GPU, those of a replayed graph included."""
    if device.type != "cuda":
        return ""
    synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(0)
        synchronize(device)
    return count_kernels(profile.events())


def count_kernels(events: Iterable[Any]) -> int:
    """The kernels among a profiler's events: on the device, no copies, no fills, no ranges that the host named."""
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
        for event in events
    )
