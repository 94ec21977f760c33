"""A record of who computed what, and why: for ``fasttx.explain``. Nothing is kept unless somebody asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple


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


_record: list[Decision] | None = None


def recording() -> bool:
    """Whether a reason that costs something to find is wanted."""
    return _record is not None


def note(what: str, choice: str, reason: str = "") -> None:
    if _record is not None:
        _record.append(Decision(what, choice, reason))


@contextlib.contextmanager
def recorded() -> Iterator[list[Decision]]:
    """The decisions of everything that runs in this process within the ``with`` block, backward included."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before
