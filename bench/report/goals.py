"""What a goal is: a number, beside what, and where in the benchmarks' tables the figures stand that answer it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from .queries import Figure
from .results import Table


class Query(Protocol):
    """Finds figures in one table."""

    def find(self, table: Table) -> Iterator[Figure]: ...


@dataclass(frozen=True)
class Goal:
    """One number.

    Attributes:
        asked: the number; None where each batch has its own.
        beside: what is compared with, or what is counted.
        places: where its figures stand; all of them have to reach the number.
        unit: "x" for so many times as fast as the peer, "" for a share, else what is counted.
        most: the number is the most that is allowed, not the least.
        hangs_on: says what the number hangs on where each batch has its own.
        command: brings the figure, where it is another than the target's.
    """

    asked: float | None
    beside: str
    places: tuple[Query, ...] = ()
    unit: str = "x"
    most: bool = False
    hangs_on: str = ""
    command: str = ""

    def met(self, figure: Figure) -> bool:
        """Whether a figure reaches this goal."""
        asked = self.asked if figure.asked is None else figure.asked
        if asked is None:
            raise ValueError(f"asked: got none for {self.beside}; allowed is a number here or in the figure")
        return figure.value <= asked if self.most else figure.value >= asked

    def text(self, asked: float | None = None) -> str:
        """The number in words."""
        value = self.asked if asked is None else asked
        if value is None:
            return self.hangs_on
        number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        return f"{'at most ' if self.most else ''}{number}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Target:
    """What is asked of one kind of work; `gpu` says that an H200 is meant."""

    name: str
    what: str
    command: str
    goals: tuple[Goal, ...]
    gpu: bool = True
