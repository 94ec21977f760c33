"""The compiled int8 kernels for a CPU, ``fasttx._C_cpu`` (csrc/cpu): whether they are here, and how tensors reach them.

Launchers take addresses, the numbers of dtypes and sizes by position; csrc/cpu/module.cpp has their order. Nothing here
allocates but a copy of rows whose columns are not at stride 1; the caller holds the tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""As csrc/cpu/kernels.h numbers them."""
NOTHING = (0, 0)

_stand_in: ModuleType | None = None


def _with_threads(module: ModuleType) -> ModuleType:
    """`module`, which knows PyTorch's threads from now on; where it finds none, each call starts some of its own."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        if module.use_threads_of(str(path)):
            break
    return module


@functools.cache
def _compiled() -> tuple[ModuleType | None, str]:
    """(fasttx._C_cpu, "") or (None, the reason why it is not here)."""
    if importlib.util.find_spec("fasttx._C_cpu") is None:
        return None, "fasttx._C_cpu is not built (installing from source builds it where a C++ compiler is)"
    try:
        return _with_threads(importlib.import_module("fasttx._C_cpu")), ""
    except ImportError as problem:
        return None, f"fasttx._C_cpu cannot be loaded: {problem}"


def built_form() -> str | None:
    """The instructions that fasttx._C_cpu runs here, such as "avx512"; None where it is not here."""
    module, _ = _compiled()
    return None if module is None else module.form()


def why_not_loaded() -> str | None:
    """Why fasttx._C_cpu is not here; None where it is."""
    return _compiled()[1] or None


def why_not(device: torch.device) -> str | None:
    """The reason why the kernels cannot run tensors on `device`, or None."""
    if device.type != "cpu":
        return f"runs on a CPU, the tensors are on '{device.type}'"
    return None if _stand_in is not None else why_not_loaded()


def any_call(*tensors: Tensor) -> None:
    """What these kernels support besides: rows of any length, any number of them, at any strides."""


def set_stand_in(module: ModuleType | None) -> None:
    """For tests: `module`, compiled from this tree, runs the kernels; None ends that."""
    global _stand_in
    _stand_in = None if module is None else _with_threads(module)


def kernels() -> ModuleType:
    """The module whose launchers run."""
    module = _stand_in or _compiled()[0]
    if module is None:
        raise RuntimeError(f"no compiled kernels for the CPU: {why_not_loaded()}")
    return module


def at(t: Tensor | None) -> tuple[int, int]:
    """A tensor of floats, contiguous in its last dim, as a launcher takes it; none as NOTHING."""
    return NOTHING if t is None else (t.data_ptr(), DTYPES[t.dtype])


def address(t: Tensor | None) -> int:
    """The same of float32 or int8, whose dtype a launcher knows."""
    return 0 if t is None else t.data_ptr()


threads = torch.get_num_threads
