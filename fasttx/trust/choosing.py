"""From what was measured to what "auto" takes: the fastest that is right, where it is faster beyond doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..ops.tuned import Measured

MARGIN = 1.05
"""How many times as fast as a kernel of ours another way has to be, to be taken in its place."""
MARGIN_ON_OWN = 1.2
"""The same beside PyTorch's own way: who leaves that must gain by it on a day with other noise, too."""


class Times(NamedTuple):
    """Milliseconds a call: the median of interleaved rounds, and their first and third quartile."""

    median: float
    low: float
    high: float


def choose(
    default: str, own: str, times: Mapping[str, Mapping[str, Times]], left_out: Mapping[str, str], quick: bool
) -> Measured | None:
    """What is taken in a regime; None where nothing was measured that is right.

    Another way than the default must be faster by the margin in the mean of the examples, slower in none, and with
    quartiles that do not overlap. Else the default is kept; where that is not right, the next of the row stands in
    for it.

    Args:
        default: what runs without a measurement.
        own: which is PyTorch's own.
        times: of each example, by what ran, in the order of the row.
        left_out: what is not right or could not run, and why.
        quick: see :class:`Measured`.
    """
    every = [set(each) for each in times.values()]
    right = [name for name in dict.fromkeys(n for each in times.values() for n in each) if name not in left_out]
    right = [name for name in right if all(name in names for names in every)]
    if not right:
        return None
    base = default if default in right else right[0]
    gains = {name: _mean([each[base].median / each[name].median for each in times.values()]) for name in right}
    takes = base
    for name in right:
        if _is_faster(times, base, name, MARGIN_ON_OWN if base == own else MARGIN) and gains[name] > gains[takes]:
            takes = name
    ms = {example: {name: each[name].median for name in right} for example, each in times.items()}
    return Measured(takes, default, own, gains, dict(left_out), ms, quick)


def _is_faster(times: Mapping[str, Mapping[str, Times]], base: str, name: str, margin: float) -> bool:
    pairs = [(each[base], each[name]) for each in times.values()]
    apart = _mean([old.low / new.high for old, new in pairs]) >= 1.0
    never_slower = all(new.median <= old.median for old, new in pairs)
    return apart and never_slower and _mean([old.median / new.median for old, new in pairs]) >= margin


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
