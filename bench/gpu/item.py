"""What a stage consists of: items, each of which runs in one context and yields lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Line = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """Where and how far items run.

    Attributes:
        device: of the tensors.
        rehearsal: tiny sizes in Triton's interpreter: no figure counts.
        dry: nothing is computed or timed: kernels are launched, so that `make gpu-prepare` compiles them.
        until: when the stage ends, by time.time().
    """

    device: torch.device
    rehearsal: bool = False
    dry: bool = False
    until: float = float("inf")

    @property
    def full(self) -> str:
        """The size of a workload that is timed."""
        return "tiny" if self.rehearsal else "full"

    @property
    def checked(self) -> str:
        """The size at which a workload is compared with float64."""
        return "tiny" if self.rehearsal else "check"

    @property
    def deadline(self) -> float:
        """The end by time.monotonic(), as the benchmarks want it."""
        return time.monotonic() + self.left()

    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def some(self, items: Sequence[T], few: int) -> list[T]:
        """All of them, or the first `few` in a rehearsal."""
        return list(items[:few] if self.rehearsal else items)


@dataclass(frozen=True)
class Item:
    """One thing that can be lost without the others.

    Attributes:
        name: unique in its stage.
        run: yields lines: ``text`` is what a person reads, ``ok`` False marks what is wrong, ``key`` True what belongs
            into the table at the end, ``expected`` the prediction that the line can refute.
    """

    name: str
    run: Callable[[Context], Iterable[Line]]
