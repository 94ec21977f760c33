"""What transformers keeps under other names in some versions of 5, and what it looks up by the name of a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import modeling_utils

CACHE = ("past_key_values", "cache")
"""Keys and values of earlier tokens."""

CACHE_LENGTH = ("past_key_values_length", "cache_length")
"""How many of these there are, from which positions count on."""


def argument(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What a call has under one of `names`; None if it has none."""
    for name in names:
        if arguments.get(name) is not None:
            return arguments[name]
    return None


def register_outputs(cls: type) -> None:
    """Lets transformers find out which of its modules' outputs a model of this class can return.

    It looks them up by the text of the class, and notes them in ``__init__``, which a class that is set later misses.
    """
    can_record = getattr(cls, "_can_record_outputs", None)
    if can_record is not None:
        dict.__setitem__(modeling_utils._CAN_RECORD_REGISTRY, str(cls), can_record)
