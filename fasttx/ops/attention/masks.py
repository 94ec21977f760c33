"""Which values of an additive mask hide a key: one rule for the kernels, the compositions, the reference and by torch.

Masks are often built with the lowest finite number of a dtype for -inf.  A row that holds nothing else is a row without
keys, and gives zeros as one of -inf does; beside any other score such a number vanishes anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST_FP16 = torch.finfo(torch.float16).min  # a mask of fp16 has nothing lower but -inf
_LOWEST = -1e30  # lower than any score; above halves and thirds of the lowest of float32 and bfloat16


def hides(bias: Tensor) -> Tensor:
    """Where a floating mask hides its key, in bool."""
    return bias <= (_LOWEST_FP16 if bias.dtype == torch.float16 else _LOWEST)


def with_infinities(bias: Tensor) -> Tensor:
    """A floating mask with -inf wherever it hides a key."""
    return bias.masked_fill(hides(bias), float("-inf"))
