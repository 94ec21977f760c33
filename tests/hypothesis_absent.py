"""Stands in for hypothesis on a machine that lacks it: tests of properties are skipped by name, all others still run.

conftest.py puts it into sys.modules where hypothesis is not installed, as on a GPU machine without a network.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import pytest


class _Anything:
    """Any strategy, setting or health check: it may be called, combined and asked for attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Anything:
        return self

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __or__(self, other: Any) -> _Anything:
        return self

    def __iter__(self) -> Any:
        return iter(())


def _given(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return pytest.mark.skip(reason="hypothesis is not installed")


class _Settings(_Anything):
    """``@settings(...)`` leaves the test as it is."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return lambda function: function


def install() -> None:
    """Makes ``from hypothesis import given, settings, strategies`` and the like work, and skip."""
    hypothesis = types.ModuleType("hypothesis")
    strategies = types.ModuleType("hypothesis.strategies")
    hypothesis.__spec__ = ModuleSpec("hypothesis", None)  # find_spec, which torch._dynamo calls, raises without
    anything = _Anything()
    vars(hypothesis).update(
        given=_given,
        settings=_Settings(),
        strategies=strategies,
        assume=anything,
        example=_Settings(),
        note=anything,
        HealthCheck=anything,
        Phase=anything,
        seed=_Settings(),
    )

    def attribute(name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for __file__
            raise AttributeError(name)
        return anything

    vars(strategies)["__getattr__"] = attribute
    sys.modules |= {"hypothesis": hypothesis, "hypothesis.strategies": strategies}
