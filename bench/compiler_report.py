"""What the compiler made of the Triton kernels run so far: registers, spills, shared memory, tensor cores."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fasttx.kernels


@dataclass(frozen=True)
class Compiled:
    """One compiled variant; `wgmma` tells whether its PTX uses Hopper's asynchronous tensor-core instruction."""

    kernel: str
    constants: str
    registers: int
    spills: int
    shared_bytes: int
    num_warps: int
    wgmma: bool


def jit_functions() -> Iterator[Any]:
    """Every Triton kernel of fasttx.kernels that was imported or can be; each once."""
    from triton.runtime.jit import JITFunction

    seen = set()
    for module in pkgutil.iter_modules(fasttx.kernels.__path__):
        for value in vars(importlib.import_module(f"fasttx.kernels.{module.name}")).values():
            if isinstance(value, JITFunction) and id(value) not in seen:
                seen.add(id(value))
                yield value


def describe(kernel: Any, constants: str) -> Compiled:
    """Reads one triton CompiledKernel."""
    return Compiled(
        kernel=kernel.metadata.name,
        constants=constants,
        registers=kernel.n_regs,
        spills=kernel.n_spills,
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        wgmma="wgmma.mma_async" in kernel.asm["ptx"],
    )


def compiled_kernels() -> list[Compiled]:
    """All variants that were launched so far; none under the interpreter, which compiles nothing."""
    found = []
    for function in jit_functions():
        for kernel_cache, *_ in function.device_caches.values():
            for key, kernel in kernel_cache.items():
                if hasattr(kernel, "result"):  # compiled in the background
                    kernel = kernel.result()
                kernel._init_handles()  # registers and spills are known once the binary is loaded
                found.append(describe(kernel, str(key)[:400]))
    return found
