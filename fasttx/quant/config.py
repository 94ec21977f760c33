"""What :func:`fasttx.quantize` can be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def names_to_skip(given: Any) -> tuple[str, ...]:
    """The names of layers, or their patterns, that an argument ``skip`` gives.

    Raises:
        TypeError: it is no sequence of strings.
    """
    listed = isinstance(given, Iterable) and not isinstance(given, str)
    names = tuple(given) if listed else ()
    if not listed or not all(isinstance(pattern, str) for pattern in names):
        raise TypeError(f"skip: got {given!r}; allowed is a sequence of names")
    return names


@dataclass(frozen=True)
class Int8Config:
    """How :func:`fasttx.quantize` makes a model's linear layers int8.

    Args:
        activation: ``"dynamic"``, the only choice so far: each token gets a scale of its own when a layer is called.
        skip: names of layers to leave alone, as they are called within the model. A shell's wildcards work
            (``"*.output.dense"``, ``"encoder.layer.0.*"``).
        keep_float: keep the float layers beside the int8 ones, at the cost of their memory. Then
            :func:`fasttx.dequantize` gives back the very same objects with their exact weights; otherwise it makes
            layers of the rounded weights.

    Raises:
        TypeError, ValueError: an argument is not as above. The message names it.
    """

    activation: str = "dynamic"
    skip: tuple[str, ...] = ()
    keep_float: bool = False

    def __post_init__(self) -> None:
        if self.activation != "dynamic":
            raise ValueError(f"activation: got {self.activation!r}; allowed is 'dynamic'")
        object.__setattr__(self, "skip", names_to_skip(self.skip))
        if not isinstance(self.keep_float, bool):
            raise TypeError(f"keep_float: got {self.keep_float!r}; allowed are True and False")
