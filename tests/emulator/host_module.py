"""Loads a variant of `_C_host`, and holds its launches to the extents of the tensors they were given."""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import host_build
from torch import Tensor


def extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last one, in memory."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


class Emulator:
    """The switches of one library that `host_build` made."""

    def __init__(self, library: Path) -> None:
        self._functions = ctypes.CDLL(str(library))
        self._functions.emu_configure.argtypes = [ctypes.c_uint64, ctypes.c_bool, ctypes.c_bool]
        self._functions.emu_set_device.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._functions.emu_add_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_bool]
        self._functions.emu_has_hooks.restype = ctypes.c_bool
        self.has_hooks: bool = self._functions.emu_has_hooks()

    def configure(self, seed: int = 1, poison: bool = True, race: bool = True) -> None:
        """Sets the order of threads and blocks, and which checks are on, for the launches that follow."""
        self._functions.emu_configure(seed, poison, race)

    def set_device(self, arch: int = 90, multiprocessors: int = 132, code: int | None = None) -> None:
        """Sets what launchers are told of the device, and what kernels were compiled for (`arch`); it stays so."""
        self._functions.emu_set_device(arch, multiprocessors, arch if code is None else code)

    def last_launch(self) -> tuple[int, int]:
        """Blocks of a cluster, and bytes of dynamic shared memory of each."""
        return self._functions.emu_last_cluster(), self._functions.emu_last_shared_bytes()

    def watch(self, tensors: dict[str, Tensor], writes: frozenset[str]) -> None:
        """Declares what the next launch may access; only kernels with hooks are held to it."""
        self._functions.emu_clear_buffers()
        if not self.has_hooks:
            return
        for name, tensor in tensors.items():
            self._functions.emu_add_buffer(tensor.data_ptr(), extent(tensor), name.encode(), name in writes)


@functools.cache
def load(variant: str) -> tuple[ModuleType, Emulator]:
    """The Python module of a variant, and its switches."""
    library = host_build.build_module(variant)
    # pybind11 caches modules by this name: each library needs its own, ending in that of its init function
    spec = importlib.util.spec_from_file_location(f"{library.stem}._C_host", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, Emulator(library)


def harmless(module: ModuleType, kinds: dict[str, Any]) -> dict[str, Any]:
    """Members by their kinds in SIGNATURES: tensors at address 16, every number 1.

    For calls in which `altered` changes a member that the launcher then refuses, before it launches.
    """
    likewise = {"int": 1, "float": 1.0, "bool": False, "dtype": 0, **{f"int[{n}]": (1,) * n for n in (3, 4, 5)}}

    def of(kind: Any) -> Any:
        if isinstance(kind, dict):
            return harmless(module, kind)
        element = kind.split()[1] if " " in kind else ""
        return (16, module.DTYPES.get(element, 0)) if element else likewise[kind]

    return {name: of(kind) for name, kind in kinds.items()}


def altered(members: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """The members with some changed; those of a struct are named "struct.member"."""
    result = copy.deepcopy(members)
    for path, value in changed.items():
        *structs, name = path.split(".")
        target = functools.reduce(lambda of, struct: of[struct], structs, result)
        assert name in target, f"{path} is no member"
        target[name] = value
    return result
