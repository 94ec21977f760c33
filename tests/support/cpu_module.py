"""fasttx._C_cpu as this tree has it, compiled into build/cpu: only what has changed since the last time."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import cpu_build

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def load() -> ModuleType | None:
    """The module, or None where there is no compiler: then its rows say that it is not built, and tests are skipped."""
    if cpu_build.lacks() is not None:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # a line for each file
        library = cpu_build.link(cpu_build.jobs(), ROOT / "build" / "cpu")
    spec = importlib.util.spec_from_file_location("_C_cpu", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
