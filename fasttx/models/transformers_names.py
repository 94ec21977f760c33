"""Arguments that transformers renamed within version 5: a call may bring either name, and both mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CACHE = ("past_key_values", "cache")
"""Keys and values of earlier tokens."""

CACHE_LENGTH = ("past_key_values_length", "cache_length")
"""How many of these there are, from which positions count on."""


def argument(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What a call has under one of `names`; None if it has none."""
    for name in names:  # not next() with a default, which torch 2.8 does not compile
        if arguments.get(name) is not None:
            return arguments[name]
    return None
