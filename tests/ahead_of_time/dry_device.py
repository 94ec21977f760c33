"""A pretend CUDA device: a kernel launched on meta tensors is compiled to machine code for the chosen arch, never run.

The launch goes through Triton's own JIT path, so that arguments are specialised as they are on a GPU and a kernel
that asks for too much shared memory raises Triton's OutOfResources.  What was compiled is recorded: registers,
spilled bytes, shared memory, machine code.  Not usable together with TRITON_INTERPRET=1: these tests are a process of
their own.
"""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

BIN = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"

SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Dynamic shared memory a block may ask for, by arch (CUDA C++ programming guide, table of compute capabilities)."""


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([BIN / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout


@functools.cache
def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of its stack); the kernels have no arrays, so that the stack is what was spilled."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump("-res-usage", cubin))
    if found is None:
        raise RuntimeError("cuobjdump printed no resource usage")
    return int(found[1]), int(found[2])


def _instructions(cubin: bytes) -> list[str]:
    sass = _cuobjdump("-sass", cubin)
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", sass, re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """One launch: what ptxas made of the kernel."""

    name: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    cubin: bytes
    module: str = ""
    configuration: str = ""
    """What the kernel was specialised for: types of its pointers, constants, warps and stages."""

    def instructions(self) -> list[str]:
        """Names of the machine instructions, in order, with their suffixes."""
        return _instructions(self.cubin)

    def loop(self, holds: str) -> list[str]:
        """Those of the smallest loop with an instruction whose name starts with `holds`; [] where there is none.

        From the target of a branch backwards to the branch: what a uniform branch skips is counted too.
        """
        sass = _cuobjdump("-sass", self.cubin)
        line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)([^;]*);", re.MULTILINE)
        code = [(int(place, 16), name, rest) for place, name, rest in line.findall(sass)]
        loops = []
        for end, name, rest in code:
            target = re.search(r"0x([0-9a-f]+)\s*$", rest)
            if name.startswith("BRA") and target and int(target[1], 16) <= end:
                body = [name for place, name, _ in code if int(target[1], 16) <= place <= end]
                if any(name.startswith(holds) for name in body):
                    loops.append(body)
        return min(loops, key=len, default=[])

    def __str__(self) -> str:
        return (
            f"{self.name} sm_{self.arch}: {self.registers} registers, {self.spill_bytes} bytes spilled, "
            f"{self.shared_bytes} bytes of shared memory"
        )


listeners: list[Callable[[Record], None]] = []
"""Told of every record, for a table of them all."""


def _configuration(src: Any, metadata: Any) -> str:
    types = sorted({t.removeprefix("*") for t in src.signature.values() if isinstance(t, str) and t.startswith("*")})
    names = src.fn.arg_names
    constants = {names[place[0]]: value for place, value in src.constants.items() if names[place[0]].isupper()}
    given = [
        name if value is True else f"{name}={value}" for name, value in constants.items() if value not in (None, False)
    ]
    return " ".join([",".join(types), *given, f"{metadata.num_warps} warps", f"{metadata.num_stages} stages"])


class _Utils:
    def __init__(self, arch: int, records: list[Record]) -> None:
        self.arch, self.records = arch, records
        self.module = self.configuration = ""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_BYTES[self.arch],
            "multiprocessor_count": 132,
            "warpSize": 32,
            "max_num_regs": 65536,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        registers, stack = _usage(cubin)
        record = Record(name, self.arch, registers, stack, shared, cubin, self.module, self.configuration)
        self.records.append(record)
        for listener in listeners:
            listener(record)
        return 1, 1, registers, stack // 4, 1024  # module, function, registers, spills, threads at most


class _Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        self.launch_cooperative_grid = False

    def __call__(self, grid_x: int, grid_y: int, grid_z: int, *args: Any) -> None:
        grid = (grid_x, grid_y, grid_z)
        if not (0 < grid_x < 2**31 and 0 < grid_y < 65536 and 0 < grid_z < 65536):
            raise ValueError(f"grid {grid} is not one that CUDA launches")


class _Driver(DriverBase):
    def __init__(self, arch: int, records: list[Record]) -> None:
        self.arch, self.utils = arch, _Utils(arch, records)

    def launcher_cls(self, src: Any, metadata: Any) -> _Launcher:
        """Triton asks for it just before it loads the same kernel."""
        self.utils.module, self.utils.configuration = src.fn.__module__, _configuration(src, metadata)
        return _Launcher(src, metadata)

    @classmethod
    def is_active(cls) -> bool:
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # triton's caches are keyed by device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        return lambda fn, quantiles=None, **kwargs: (fn(), [1.0] * len(quantiles or [0]))[1]

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache: Any) -> None:
        pass


@contextmanager
def dry_device(arch: int, *arch_functions: str) -> Iterator[list[Record]]:
    """Within it, ``kernel[grid](meta tensors)`` compiles for `arch` and is recorded in the list that is yielded.

    A kernel is recorded when it is first loaded for an arch in this process: launching it again adds nothing.

    Args:
        arch: compute capability, times ten.
        arch_functions: dotted names of the functions by which launchers learn the arch of a device; they answer `arch`.
    """
    records: list[Record] = []
    driver.set_active(_Driver(arch, records))
    patches = [mock.patch(name, lambda device: arch) for name in arch_functions]
    for patch in patches:
        patch.start()
    try:
        yield records
    finally:
        for patch in patches:
            patch.stop()
        driver._active = None  # reset_active() would look for a real driver


def forget() -> None:
    """Every kernel of ours is loaded and recorded again when it is next launched, by whatever test."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fasttx.kernels."):
            for value in vars(module).values():
                if isinstance(value, triton.runtime.JITFunction):
                    value.device_caches.clear()


@contextmanager
def compiled() -> Iterator[list[Any]]:
    """Within it, the kernels that are launched are kept in the list that is yielded, as Triton compiled them."""
    kept: list[Any] = []
    run = triton.runtime.JITFunction.run

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append(run(*args, **kwargs))
        return kept[-1]

    with mock.patch.object(triton.runtime.JITFunction, "run", keep):
        yield kept


def code_of(kernel: Any) -> list[str]:
    """Names of the machine instructions of a compiled kernel, in order, without what fills up its end."""
    return [name for name in _instructions(kernel.asm["cubin"]) if name != "NOP"]


def layouts_of_sums(kernel: Any) -> list[tuple[str, str]]:
    """Shape and layout of what each reduction of a compiled kernel adds, in order: which thread has which element."""
    text = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\S.*)$", text, re.MULTILINE))
    found = re.findall(r'"tt\.reduce".*?\) : \(tensor<([^,>]*), (#\w+)>\)', text, re.DOTALL)
    return [(shape, layouts[name]) for shape, name in found]
