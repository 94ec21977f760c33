"""The compiled kernels of CUDA C++, ``fasttx._C``: whether they are here, and how tensors reach them.

Launchers take the members of their params structs by name; the bindings (csrc/bindings.cpp) have the one list of them.
Nothing here allocates; the caller has made the tensors' device current and holds the tensors.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Watch = Callable[[dict[str, Tensor], frozenset[str]], None]
"""Is told the tensors of a launch by name, and which of them it writes."""

_stand_in: tuple[ModuleType, Watch] | None = None
_dtype_codes: dict[torch.dtype, int] = {}


@functools.cache
def _compiled() -> tuple[ModuleType | None, str]:
    """(fasttx._C, "") or (None, the reason why it is not here)."""
    if importlib.util.find_spec("fasttx._C") is None:
        return (
            None,
            "fasttx._C is not built (installing from source builds it, with nvcc and a GPU or with FASTTX_CUDA=1)",
        )
    try:
        return importlib.import_module("fasttx._C"), ""
    except ImportError as problem:
        return None, f"fasttx._C cannot be loaded: {problem}"


def built_for() -> str | None:
    """The archs of fasttx._C, such as "80,90a,ptx120"; None where it is not here."""
    module, _ = _compiled()
    return None if module is None else module.ARCHS


def why_not_loaded() -> str | None:
    """Why fasttx._C is not here; None where it is."""
    return _compiled()[1] or None


def covers(archs: str, arch: int) -> bool:
    """Whether code built for `archs` runs on a device of compute capability arch / 10.

    Machine code runs on its own major version from its own minor version on, "90a" on 9.0 alone, and PTX on every later
    device.
    """
    for name in archs.split(","):
        number = int(name.removeprefix("ptx").rstrip("af") or 0)
        if name.startswith("ptx"):
            fits = arch >= number
        elif name.endswith("a"):
            fits = arch == number
        else:
            fits = arch // 10 == number // 10 and arch >= number
        if fits:
            return True
    return False


def compiles_when_loaded(device: torch.device, arch: int) -> bool:
    """Whether the driver makes machine code of fasttx._C for `device` when a kernel is first launched."""
    module, _ = _compiled()
    if module is None or device.type != "cuda":
        return False
    return not covers(",".join(name for name in module.ARCHS.split(",") if not name.startswith("ptx")), arch)


@functools.cache
def driver_version() -> int:
    """The CUDA version of the driver as 1000 * major + 10 * minor; 0 where there is none, or none that tells."""
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(
            ctypes.byref(version)
        )
    except (OSError, AttributeError):
        return 0
    return 0 if failed else version.value


def _too_old(module: ModuleType, arch: int) -> str | None:
    """Why the driver cannot run what `module` was built with, or None: it must be of the major version of its CUDA, and
    to compile PTX of the minor one, too."""
    runtime, driver = getattr(module, "RUNTIME", 0), driver_version()
    ptx = not covers(",".join(name for name in module.ARCHS.split(",") if not name.startswith("ptx")), arch)
    if not runtime or not driver or (driver >= runtime if ptx else driver // 1000 >= runtime // 1000):
        return None
    has, needs = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
    return f"fasttx._C is built with CUDA {needs}, and the driver is for {has} (update it, or build with its nvcc)"


def why_not(device: torch.device, arch: int | None) -> str | None:
    """The reason why the compiled kernels cannot run on `device`, of compute capability arch / 10, or None."""
    if arch is None:
        return None if _stand_in is not None and device.type == "cpu" else "needs an NVIDIA GPU"
    module, reason = _compiled()
    if module is None:
        return reason
    if covers(module.ARCHS, arch):
        return _too_old(module, arch)
    again = f"install again with FASTTX_CUDA_ARCHS={module.ARCHS},{arch}"
    return f"fasttx._C is built for {module.ARCHS}, the device has {arch} ({again})"


def set_stand_in(module: ModuleType | None, watch: Watch | None = None) -> None:
    """For tests: `module`, the same sources compiled for the CPU, runs the kernels of CPU tensors; None ends that."""
    global _stand_in
    _stand_in = None if module is None else (module, watch or (lambda tensors, writes: None))
    _dtype_codes.clear()


def _module(device: torch.device) -> ModuleType:
    module = _stand_in[0] if device.type == "cpu" and _stand_in is not None else _compiled()[0]
    if module is None:
        raise RuntimeError(f"no compiled kernels for {device}")
    return module


def _tensors(members: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among the members of a launcher, and those of structs among them as "struct.member"."""
    for name, value in members.items():
        if isinstance(value, Tensor):
            yield of + name, value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{of}{name}.")


def _written(signature: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """What a launcher writes by a signature of SIGNATURES, named as by `_tensors`."""
    for name, kind in signature.items():
        if isinstance(kind, dict):
            yield from _written(kind, f"{of}{name}.")
        elif kind.startswith("out "):
            yield of + name


def _as_numbers(value: Any) -> Any:
    """A member as the bindings take it: a tensor as its address and dtype, a dtype as its number."""
    if isinstance(value, Tensor):
        return value.data_ptr(), _dtype_codes[value.dtype]
    if isinstance(value, torch.dtype):
        return _dtype_codes[value]
    if isinstance(value, dict):
        return {name: _as_numbers(each) for name, each in value.items()}
    return value


def launch(name: str, **members: Any) -> None:
    """Calls a launcher on the current stream of the tensors' device.

    Args:
        name: a function of fasttx._C.
        members: every member of its params struct (csrc/<op>/<op>.h) by name: tensors, or None where there is none,
            dtypes and numbers; a struct is a dict of its own members.

    Raises:
        TypeError: a member is missing, unknown or of another type; the message names the launcher and the member.
        RuntimeError: the launch failed; the message names kernel, shape and arch.
    """
    device = next(_tensors(members))[1].device
    module = _module(device)
    if device.type == "cpu" and _stand_in is not None:
        _stand_in[1](dict(_tensors(members)), frozenset(_written(module.SIGNATURES[name])))
    if not _dtype_codes:
        _dtype_codes.update((getattr(torch, dtype), code) for dtype, code in module.DTYPES.items())
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    getattr(module, name)(stream, **_as_numbers(members))
