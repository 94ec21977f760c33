"""What a calibration sees of a linear layer's inputs, and what is made of it: scales and factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SEEN = "_fasttx_seen"
"""In the ``__dict__`` of a linear layer: its :class:`Seen`."""
ROWS = 512
"""Rows of inputs that are kept at most, drawn among all. Every n-th would be the first token of each short text."""
LEAST_GAIN = 0.8
"""Relative error of tokens with a factor over that without, at most: a factor costs a pass over the input."""
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
        self.rows = torch.empty(0, 0)
        self._lots = torch.empty(0)
        self._draw = torch.Generator().manual_seed(0)  # of its own: the caller's are left as they are

    def add(self, rows: Tensor) -> None:
        """Look at rows (n, in_features)."""
        rows = rows.detach().float()
        if not len(rows):
            return
        self.calls[len(rows)] += 1
        largest = rows.abs().amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        lots = torch.cat([self._lots, torch.rand(len(rows), generator=self._draw)])
        rows = torch.cat([self.rows.to(rows), rows]) if len(self.rows) else rows
        kept = lots.topk(min(ROWS, len(lots))).indices
        self.rows, self._lots = rows[kept.to(rows.device)], lots[kept]

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
        (plain, plain_sum), (smooth, smooth_sum) = (self.errors(weights, each) for each in (None, factor))
        return factor if smooth < LEAST_GAIN * plain and smooth_sum < plain_sum else None

    def errors(self, weights: Sequence[Tensor], factor: Tensor | None) -> tuple[float, float]:
        """What rounding rows and weights leaves in the products of the rows that were kept: the mean of each token's
        square beside its product's, which no few large tokens decide; and the sum of all squares."""
        rows, relative, total = self.rows.to(weights[0].device), 0.0, 0.0
        x = rounded(rows if factor is None else rows * factor)
        for weight in weights:
            wide = weight.detach().float()
            w, exact = rounded(wide if factor is None else wide / factor), rows @ wide.t()
            off = (x @ w.t() - exact).square().sum(-1)
            relative += float((off / exact.square().sum(-1).clamp_min(1e-30)).mean())
            total += float(off.sum())
        return relative, total

    def scale(self, factor: Tensor | None) -> Tensor:
        """One scale for all inputs, float32 (): that of the largest value, so that nothing which was seen saturates."""
        assert self.largest is not None
        largest = self.largest if factor is None else self.largest * factor.to(self.largest.device)
        return largest.amax().clamp_min(2.0**-118) / 127


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
