"""What the costs of several ops have in common."""

from __future__ import annotations

from torch import Tensor


def bytes_of(*values: object) -> int:
    """Memory of the tensors among `values`; anything else, None for instance, counts nothing."""
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))
