"""What a calibration sees of a linear layer's inputs, and what is made of it: scales and factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SEEN = "_fasttx_seen"
"""In the ``__dict__`` of a linear layer: its :class:`Seen`."""
ROWS = 256
"""Rows of inputs that are kept at most, evenly among all."""
CLIPPED = 0.01
"""Share of the tokens whose largest values lie beyond a static scale."""
LEAST_GAIN = 0.8
"""Error with a factor over error without, at most: a factor costs a pass over the input."""
LARGEST = 8.0
"""Power of two of the largest factor, beside the median of all: float16 ends at 2**16."""


class Seen:
    """The inputs of one layer, or of several that are given the same tensor (query, key and value).

    Attributes:
        largest: float32 (in_features,), the largest magnitude in each channel; None before the first call.
        rows: float32 (n, in_features), some rows.
        calls: how many calls had so many rows.
    """

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        self.calls: Counter[int] = Counter()
        self._parts: list[Tensor] = []
        self._step, self._total, self._kept = 1, 0, 0

    def add(self, rows: Tensor) -> None:
        """Look at rows (n, in_features)."""
        rows = rows.detach().float()
        if not len(rows):
            return
        self.calls[len(rows)] += 1
        largest = rows.abs().amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        part = rows[-self._total % self._step :: self._step].clone()
        self._parts.append(part)
        self._kept += len(part)
        self._total += len(rows)
        while self._kept > 2 * ROWS:
            self._parts = [torch.cat(self._parts)[::2]]
            self._kept, self._step = len(self._parts[0]), 2 * self._step

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._parts)

    def factor(self, weights: Sequence[Tensor], alpha: float) -> Tensor | None:
        """The factor of inputs (in_features,) for the weights that read them; None where it would not pay."""
        assert self.largest is not None
        x = self.largest.to(weights[0].device)
        w = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
        ratio = alpha * x.log2() - (1 - alpha) * w.log2()
        usable = ratio.isfinite()
        if not bool(usable.any()):
            return None
        power = (ratio[usable].median() - ratio).round().clamp(-LARGEST, LARGEST)
        factor = torch.where(usable, power.exp2(), torch.ones(()).to(power))
        plain, smooth = (self.error(weights, each) for each in (None, factor))
        return factor if smooth < LEAST_GAIN * plain else None

    def error(self, weights: Sequence[Tensor], factor: Tensor | None) -> float:
        """Sum of squares that rounding rows and weights leaves in the products of the rows that were kept."""
        rows, off = self.rows.to(weights[0].device), 0.0
        x = rounded(rows if factor is None else rows * factor)
        for weight in weights:
            wide = weight.detach().float()
            w = rounded(wide if factor is None else wide / factor)
            off += float((x @ w.t() - rows @ wide.t()).square().sum())
        return off

    def scale(self, factor: Tensor | None) -> Tensor:
        """One scale for all inputs, float32 (): of the percentile of the largest values of tokens."""
        rows = self.rows if factor is None else self.rows * factor.to(self.rows.device)
        tops = rows.abs().amax(-1)
        return (tops.quantile(1 - CLIPPED).clamp_min(2.0**-118) / 127).float()


def rounded(rows: Tensor) -> Tensor:
    """What int8 with a scale for each row leaves of rows."""
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(2.0**-118) / 127
    return (rows / scale).round() * scale


def seen_by(linear: nn.Module) -> Seen | None:
    """What a calibration saw of this layer's inputs, or None."""
    found: Seen | None = linear.__dict__.get(SEEN)
    return found if found is not None and found.largest is not None else None


def forget(linear: nn.Module) -> None:
    """Drop what a calibration saw of this layer's inputs."""
    linear.__dict__.pop(SEEN, None)
