"""A machine whose CPU is a GPU to fasttx: the same Python runs as on a GPU, and kernels launch nothing.

Wherever fasttx's sources say "cuda" as the type of a device they are read as if they said "cpu", and the other way
round. So every decision, check and call is the one of a GPU, on tensors of a CPU. To be switched on before fasttx is
imported, in a process of its own; results are what stands in memory, and mean nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence
from types import ModuleType
from typing import Any

SWAPPED = {"cuda": "cpu", "cpu": "mps"}  # no tensor of these tests is on mps, which PyTorch knows everywhere
PARTS = ("fasttx.functional", "fasttx.models", "fasttx.nn", "fasttx.ops", "fasttx.quant")


class _Swap(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and node.value in SWAPPED:
            return ast.copy_location(ast.Constant(SWAPPED[node.value]), node)
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        return compile(_Swap().visit(ast.parse(data)), path, "exec", dont_inherit=True, optimize=_optimize)

    def get_code(self, fullname: str) -> Any:  # no file of bytecode, read or written
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if not name.startswith(PARTS) or name.endswith(".cases"):  # examples are tensors of a CPU
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _launch(*arguments: Any) -> None:
    """In place of every launcher."""


def switch_on() -> None:
    """Makes fasttx take the CPU for a GPU of compute capability 9.0 from now on."""
    if any(name.startswith(PARTS) for name in sys.modules):
        raise RuntimeError("fasttx is imported already")
    os.environ["FASTTX_FIRST_USE_CHECK"] = "0"
    sys.meta_path.insert(0, _Finder())
    import torch

    torch.cuda.current_device = lambda: None  # the index of a CPU
    torch._C._cuda_getDevice = functools.partial({}.get, None)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(name="pretended", major=9, minor=0)
    import fasttx.ops
    import fasttx.ops.availability

    fasttx.ops.availability._arch = functools.cache(lambda index: 90)
    home = sys.modules.get("fasttx.ops.dispatch") or sys.modules["fasttx.ops.registry"]
    name = "resolve" if hasattr(home, "resolve") else "_resolve"
    assert hasattr(home, name)
    setattr(home, name, lambda path: _launch)
