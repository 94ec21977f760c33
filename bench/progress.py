"""How far a run is, and how long it still takes: a line for each item on stderr. `fasttx bench` draws a bar instead."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TextIO, TypeVar

T = TypeVar("T")
QUICK_SECONDS = 120
"""The bound of a run with --quick where none is given."""

Name = Callable[[Any], str]


def name_of(item: Any) -> str:
    """What an item calls itself; "" where it has no name."""
    return str(getattr(item, "name", ""))


class Watch(Protocol):
    """Passes on what is to be measured, one by one, and shows how far it is."""

    def __call__(self, items: Sequence[T], name: Name = name_of) -> Iterable[T]: ...


def unwatched(items: Sequence[T], name: Name = name_of) -> Iterator[T]:
    yield from items


def duration(seconds: float) -> str:
    """About how long, in words: "5 s", "2 min", "1 h 10 min"."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def add_bound(parser: argparse.ArgumentParser) -> None:
    """The option ``--seconds``, which :func:`bound_of` reads."""
    text = f"begin nothing new after so many seconds; {QUICK_SECONDS} with --quick, else there is no bound"
    parser.add_argument("--seconds", type=float, help=text)


def bound_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> float | None:
    """Seconds after which nothing new begins, which it tells on stderr; or None."""
    if options.seconds is not None and not options.seconds > 0:
        parser.error(f"--seconds: got {options.seconds:g}; allowed are numbers above 0")
    bound: float | None = options.seconds or (QUICK_SECONDS if options.quick else None)
    if bound is not None:
        print(f"nothing new begins after {duration(bound)} (--seconds)", file=sys.stderr, flush=True)
    return bound


def deadline(seconds: float | None) -> float | None:
    """That bound as a time of the monotonic clock."""
    return None if seconds is None else time.monotonic() + seconds


def watcher(what: str, stream: TextIO | None = None) -> Watch:
    """A :class:`Watch` that writes a line for each item: `what`, how far it is, and about how long it still takes."""

    def watch(items: Sequence[T], name: Name = name_of) -> Iterator[T]:
        begun = time.monotonic()
        for number, item in enumerate(items):
            left = (time.monotonic() - begun) / max(1, number) * (len(items) - number)
            called = f": {name(item)}" if name(item) else ""
            estimate = f", about {duration(left)} left" if number else ""
            print(f"{what} {number + 1} of {len(items)}{called}{estimate}", file=stream or sys.stderr, flush=True)
            yield item

    return watch
