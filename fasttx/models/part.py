"""A part of a layer that a patch replaces by fewer kernels: what the engine has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One kind of module within the layers of a family.

    Attributes:
        option: the argument of :func:`fasttx.patch` that asks for it.
        before, after: what transformers calls there and what a patched module does, for the report.
        op: the op in the table that decides on the backend.
        where: on which devices, for the report.
        apart: why this module has to be called as transformers does, or None.
        replace: makes the subclass, from transformers' class and the module where pickle finds the new one.
    """

    option: str
    before: str
    after: str
    op: str
    where: str
    apart: Callable[[Any], str | None]
    replace: Callable[[type, str], type]
