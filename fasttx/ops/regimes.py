"""Classes of calls, by the numbers of their shapes that decide how fast they are.

Those of an op stand in its folder, ``fasttx/ops/<op>/regimes.py``, beside its cases. `tune` measures one call or two of
each regime, and "auto" looks a call up by the tensors in ``Direction.keys``, on which forward and backward decide
alike: whether a call has dropout is thus no part of a regime of an op, but an example in each.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .cases import Draw


@dataclass(frozen=True)
class Axis:
    """A number of a call, cut into classes.

    Attributes:
        names: of the classes, ascending.
        bounds: where each class but the first begins.
        typical: a number of each class, which is measured.
    """

    names: tuple[str, ...]
    bounds: tuple[int, ...]
    typical: tuple[int, ...]

    def name_of(self, number: int) -> str:
        """The class of a number; a loop, which dynamo can trace."""
        for name, bound in zip(self.names, self.bounds):
            if number < bound:
                return name
        return self.names[-1]


def name_of(axes: tuple[Axis, ...], numbers: tuple[int, ...]) -> str:
    """The name of the regime in which these numbers lie, one for each axis."""
    return ", ".join([axis.name_of(number) for axis, number in zip(axes, numbers)])


def all_of(axes: tuple[Axis, ...], typical: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Every regime, with its typical numbers; the one of the classes `typical` first, then those nearest to it."""
    found = list(itertools.product(*(zip(axis.names, axis.typical, strict=True) for axis in axes)))
    found.sort(key=lambda regime: sum(name not in typical for name, _ in regime))
    return {", ".join(name for name, _ in regime): tuple(number for _, number in regime) for regime in found}


Example = tuple[str, tuple[Any, ...]]
"""A name, and the arguments of one call of ``<op>_fwd`` without the last, ``backend``."""


@dataclass(frozen=True)
class Regimes:
    """The regimes of an op.

    Attributes:
        numbers: of the key tensors: the numbers of a call, one for each axis.
        axes: their classes.
        typical: the classes of the regime that is measured first.
        examples: makes the calls of a regime, from its typical numbers. With `few` there are fewer rows of the same
            kind, so that float64 takes no time.
    """

    numbers: Callable[..., tuple[int, ...]]
    axes: tuple[Axis, ...]
    typical: tuple[str, ...]
    examples: Callable[..., Iterator[Example]]

    def name_of(self, *tensors: Tensor) -> str:
        """The regime of a call, from the tensors named by ``Direction.keys``."""
        return name_of(self.axes, self.numbers(*tensors))

    def calls(self, draw: Draw, regime: str, few: bool) -> list[Example]:
        """The calls that stand for a regime."""
        return list(self.examples(draw, few, *self.all()[regime]))

    def all(self) -> dict[str, tuple[int, ...]]:
        """Every regime with its typical numbers, in the order in which they are measured."""
        return all_of(self.axes, self.typical)


@functools.cache
def regimes_of(op: str) -> Regimes:
    """The regimes of an op.

    Raises:
        ModuleNotFoundError: the op has no file of regimes.
    """
    found: Regimes = importlib.import_module(f"fasttx.ops.{op}.regimes").REGIMES
    return found


# ----------------------------------------------------------------------------------------- rows, which many ops have

ROWS = Axis(("few rows", "many rows"), (2048,), (512, 16384))
FEW = 64
"""Rows of a call that is compared with float64."""


def rows_and_columns(x: Tensor, *_: Tensor) -> tuple[int, int]:
    """How many columns, and how many rows, the first key tensor has."""
    n_cols = x.shape[-1]
    return n_cols, x.numel() // max(n_cols, 1)


def dtype_of(*tensors: Tensor) -> torch.dtype:
    """The dtype by which calls are told apart: the first floating one, or that of the integers that alone decide."""
    return next((x.dtype for x in tensors if x.is_floating_point()), tensors[0].dtype)
