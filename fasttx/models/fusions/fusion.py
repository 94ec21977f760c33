"""A part of a layer that a patch replaces by fewer kernels: what the engine has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...functional._routing import uncovered

APART_ON = frozenset(("cpu",))
"""Types of device on which transformers' own forward runs, as it is as fast there, unless a backend is forced."""


@dataclass(frozen=True)
class Part:
    """One kind of module within the layers of a family.

    Attributes:
        option: the argument of :func:`fasttx.patch` that asks for it.
        before, after: what transformers calls there and what a patched module does, for the report.
        op: the op in the table that decides on the backend, or "" if none does.
        where: on which devices, for the report.
        apart: why this module has to be called as transformers does, or None.
        replace: makes the subclass, from transformers' class and the module where pickle finds the new one.
        needs_attention: whether the part belongs to a module that has to call fasttx's attention for it.
    """

    option: str
    before: str
    after: str
    op: str
    where: str
    apart: Callable[[Any], str | None]
    replace: Callable[[type, str], type]
    needs_attention: bool = False


def as_fast_apart(x: Tensor) -> str | None:
    """The reason why x's device runs a part as transformers does, or None."""
    return f"on a {x.device.type} they are as fast" if x.device.type in APART_ON else None


def apart_now(
    module: Any, x: Tensor, backend: str, apart: Callable[[Any], str | None], weighted: Callable[[Any], Any]
) -> str | None:
    """Why this call of a part runs as transformers does, or None.

    Args:
        module: the part.
        x: what it is called with.
        backend: what the call is forced to, or "auto".
        apart: see :class:`Part`.
        weighted: gives the child whose weight and bias are used without calling it.
    """
    if backend == "torch":
        return "backend='torch' asks for PyTorch's own operators"
    reason = (as_fast_apart(x) if backend == "auto" else None) or apart(module)
    if reason is not None or backend != "auto":  # a forced backend answers for itself
        return reason
    child = weighted(module)
    return uncovered(x, child.weight, child.bias)
