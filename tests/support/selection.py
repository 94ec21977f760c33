"""Tests of many cases: how many of the cases run each time. The rest carry the mark `exhaustive`.

`make test` and `make test-slow` leave those out, `make test-exhaustive` runs them, and so does pytest by itself. Which
ones run each time hangs on their names alone, spread by a hash: neighbours in a list are seldom alike in that.
"""

from __future__ import annotations

import zlib
from collections import Counter

import pytest

ONE_IN: dict[str, int] = {}
"""Test -> of how many of its cases one runs each time."""

collected: Counter[str] = Counter()
kept: Counter[str] = Counter()


def mark(item: pytest.Item) -> None:
    """Marks a case that does not run each time."""
    file, _, name = item.nodeid.partition("::")
    test = f"{file}::{name.split('[')[0]}"
    if test in ONE_IN:
        collected[test] += 1
        if zlib.crc32(name.encode()) % ONE_IN[test]:
            item.add_marker(pytest.mark.exhaustive)
        else:
            kept[test] += 1
