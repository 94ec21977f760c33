"""What a whole run of bench.model or bench.serving shares, and how it tells of a failure."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

COMPILE_SECONDS = 60.0
"""Time that has to be left for an arm that compiles."""
LONGEST_S = 60.0
"""Bound of the timing of one comparison."""


def one_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:160]}"


@dataclass(frozen=True)
class Settings:
    """What a whole run shares; see :func:`run`."""

    device: torch.device
    dtype: torch.dtype
    where: str
    unpad: bool | str
    backend: str
    rounds: int
    deadline: float | None

    @classmethod
    def of(cls, device: torch.device, rounds: int, rehearsal: bool, deadline: float | None) -> Settings:
        on_gpu = device.type == "cuda"
        return cls(
            device=device,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            where="rehearsal" if rehearsal else torch.cuda.get_device_name(device) if on_gpu else device.type,
            unpad=True if rehearsal else "auto",  # so small a batch would stay padded
            backend="aot_eager" if rehearsal else "inductor",
            rounds=rounds,
            deadline=deadline,
        )

    def left(self) -> float:
        """Seconds for the timing of one comparison."""
        return LONGEST_S if self.deadline is None else min(LONGEST_S, max(1.0, self.deadline - time.monotonic()))

    def late(self, compiled: bool = False) -> bool:
        spare = COMPILE_SECONDS if compiled and self.backend == "inductor" else 0.0
        return self.deadline is not None and time.monotonic() + spare > self.deadline
