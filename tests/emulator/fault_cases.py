"""Kernels with one fault at a time on request: how their faults are named, compiled, and held to a report."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path

import host_build
import host_module

SEEDS = range(1, 7)  # odd ones run a warp as far as it gets, even ones switch and land copies at random


def faults_of(source: Path) -> list[str]:
    """The names in its enum Fault, by number."""
    return re.findall(r"^  k(\w+),", source.read_text(), re.MULTILINE)


@functools.cache
def library_of(variant: str, source: Path, function: str) -> tuple[ctypes.CDLL, host_module.Emulator]:
    """`source` for the emulator; `function` takes three addresses and two numbers, and returns its report."""
    path = host_build.build_library(variant, [source], bindings=False)
    library = ctypes.CDLL(str(path))
    runner = getattr(library, function)
    runner.restype, runner.argtypes = ctypes.c_char_p, [ctypes.c_void_p] * 3 + [ctypes.c_int] * 2
    return library, host_module.Emulator(path)


def assert_reported(report_at: Callable[[int], str], expected: str) -> None:
    """That what report_at(seed) gives matches `expected` at every seed."""
    for seed in SEEDS:
        report = report_at(seed)
        assert re.search(expected, report), f"seed {seed}: {report or 'nothing reported'}"
