"""A record of who computed what, and why: for ``fasttx.explain``. Nothing is kept unless somebody asks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Decision(NamedTuple):
    """One decision of one call.

    Attributes:
        what: an operator (``attention_fwd``), a function that may go to torch's own, or a part of a patched model.
        choice: a backend, ``"torch's own"``, or what the part did.
        reason: why not otherwise; "" where there was no other way to take.
    """

    what: str
    choice: str
    reason: str


records: tuple[tuple[list[Decision], list[Decision]], ...] = ()
"""For whom decisions are kept: those of what runs, and those of a graph that is being compiled. The latter have a list
of their own, because a compiled graph writes the whole of a list that changed in it, after its operators have run.
Where a reason costs something to find, ask first whether there is anybody."""
_lock = threading.Lock()


def note(what: str, choice: str, reason: str = "") -> None:
    for ran, traced in records:
        (traced if torch.compiler.is_compiling() else ran).append(Decision(what, choice, reason))


@contextlib.contextmanager
def recorded() -> Iterator[list[Decision]]:
    """The decisions of everything that runs in this process within the ``with`` block, backward included.

    Those of compiled graphs' Python come first, and when the block ends. Blocks may overlap, in several threads too.
    """
    global records
    ran: list[Decision] = []
    mine: tuple[list[Decision], list[Decision]] = (ran, [])
    with _lock:
        records = (*records, mine)
    try:
        yield ran
    finally:
        with _lock:
            records = tuple(record for record in records if record is not mine)
        ran[:0] = mine[1]
