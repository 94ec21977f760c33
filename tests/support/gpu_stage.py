"""A stage whose items go wrong in every way that a GPU knows, without one: what tests/bench/test_gpu_check.py runs.

FASTTX_FAKE_ITEMS names the items, one after the other; a number at the end of a name tells two of a kind apart.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_broken = False


@dataclass(frozen=True)
class Context:
    rehearsal: bool
    until: float


@dataclass(frozen=True)
class Item:
    name: str
    run: Callable[[Context], Iterator[dict[str, Any]]]


def context(rehearsal: bool, until: float) -> Context:
    return Context(rehearsal, until)


def is_broken() -> bool:
    return _broken


def good(_: Context) -> Iterator[dict[str, Any]]:
    yield {"text": "fine", "process": os.getpid()}


def wrong(_: Context) -> Iterator[dict[str, Any]]:
    yield {"text": "error 2 of 1 allowed", "ok": False, "process": os.getpid()}


def raises(_: Context) -> Iterator[dict[str, Any]]:
    yield {"text": "half of it"}
    raise ValueError("no such tile")


def sticky(_: Context) -> Iterator[dict[str, Any]]:
    """An error after which every call of this process fails."""
    global _broken
    _broken = True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
    yield {}


def crashes(_: Context) -> Iterator[dict[str, Any]]:
    yield {"text": "about to"}
    sys.stderr.write("the last words\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(_: Context) -> Iterator[dict[str, Any]]:
    """Ends the process without a word."""
    os._exit(7)
    yield {}


def hangs(_: Context) -> Iterator[dict[str, Any]]:
    """With a child that hangs too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"text": "started", "child": child.pid}
    time.sleep(600)


def writes(_: Context) -> Iterator[dict[str, Any]]:
    """Long lines without an end."""
    while True:
        yield {"text": "x" * 3000}


def items(_: Context) -> list[Item]:
    names = os.environ["FASTTX_FAKE_ITEMS"].split(",")
    return [Item(name, globals()[name.rstrip("0123456789")]) for name in names]
