"""What Triton compiled meanwhile, and what came from its cache; registers and spills of the kernels that ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..compiler_report import Compiled, compiled_kernels


@dataclass
class Seen:
    """How many kernels were compiled, and how many were found in the cache."""

    hits: int = 0
    misses: int = 0


@contextlib.contextmanager
def watching() -> Iterator[Seen]:
    """Counts within the ``with`` block; other versions of Triton, without this listener, count nothing."""
    seen = Seen()
    try:
        from triton import knobs

        place: Any = knobs.compilation
        before = place.listener
    except (ImportError, AttributeError):
        yield seen
        return

    def listen(*args: Any, cache_hit: bool = False, **rest: Any) -> None:
        if cache_hit:
            seen.hits += 1
        else:
            seen.misses += 1

    place.listener = listen
    try:
        yield seen
    finally:
        place.listener = before


@contextlib.contextmanager
def new_kernels() -> Iterator[list[Compiled]]:
    """The variants that were launched first within the ``with`` block; none in the interpreter."""
    before, found = set(compiled_kernels()), list[Compiled]()
    yield found
    found += [kernel for kernel in compiled_kernels() if kernel not in before]


def in_words(kernels: list[Compiled]) -> str:
    return ", ".join(f"{k.kernel} {k.registers} regs" + (f" {k.spills} SPILLED" if k.spills else "") for k in kernels)
