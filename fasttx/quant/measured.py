"""Which form of a linear layer is faster on the device where it is: as it is, or int8."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.int8 import Int8Linear
from .seen import seen_by

ROWS = 512
"""Rows of an input where no calibration has seen any."""
TURNS = 7
CALLS = 4
"""Calls a turn: of each form the least turn counts."""


class Times(NamedTuple):
    """Seconds of a call of each form with so many rows."""

    rows: int
    dtype: torch.dtype
    as_float: float
    as_int8: float

    @property
    def float_reason(self) -> str | None:
        """Why the layer should stay float, or None."""
        if self.as_int8 <= self.as_float:
            return None
        name = str(self.dtype).removeprefix("torch.")
        return (
            f"{name} is faster here: {self.as_float * 1e3:.3g} ms for {self.rows} rows, int8 {self.as_int8 * 1e3:.3g}"
        )


def times_of(made: Mapping[nn.Module, Int8Linear]) -> dict[nn.Module, Times]:
    """The times of each float layer and of its int8 layer; layers of one shape, dtype and device are timed once.

    Rows are as many as most calls of a calibration had, by the median, else :data:`ROWS`. Inputs are random, and the
    random generators stay as they were.
    """
    known: dict[tuple[Any, ...], Times] = {}
    found: dict[nn.Module, Times] = {}
    for linear, layer in made.items():
        weight: Any = linear.weight
        rows = rows_of(linear)
        rounding = tuple(getattr(layer, own) is None for own in ("input_scale", "input_factor", "bias"))
        key = (weight.device, weight.dtype, tuple(weight.shape), rows, rounding)
        if key not in known:
            draw = torch.Generator().manual_seed(0)
            x = torch.randn(rows, weight.shape[1], generator=draw).to(weight.device, weight.dtype)
            known[key] = Times(rows, weight.dtype, *least((linear, layer), x))
        found[linear] = known[key]
    return found


def rows_of(linear: nn.Module) -> int:
    """How many rows an input of this layer has: the median of what a calibration saw."""
    seen = seen_by(linear)
    if seen is None:
        return ROWS
    sizes = sorted(seen.calls.elements())
    return sizes[len(sizes) // 2]


def least(forms: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> list[float]:
    """Seconds of a call of each, in turns."""
    with torch.inference_mode():
        for form in forms:  # what compiles, packs or allocates does so here
            form(x)
        return [min(each) for each in zip(*([seconds(form, x) for form in forms] for _ in range(TURNS)))]


def seconds(form: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one call, the mean of a few in a row."""
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    begun = time.perf_counter()
    for _ in range(CALLS):
        form(x)
    wait()
    return (time.perf_counter() - begun) / CALLS
