"""The kernels of this folder that use the wrappers of csrc/arch, as a library for the emulator or for a GPU.

Both are called alike, so that one test (`instruction_cases.py`) holds an instruction of a GPU and its emulation to the
same expectation.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import compiling
import cuda_build
import host_build
import host_module
import torch
from torch import Tensor

SOURCES = {
    name: host_build.HERE / f"{name}.cu"
    for name in (
        "instructions_sm80",
        "instructions_sm90",
        "instructions_cluster",
        "gemm_sm80",
        "gemm_sm90",
    )
}
ROOM = 1 << 16
"""More bytes than a product with a fault strays: its report names the tensor that is nearest to the access."""
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.int8: 2}


class Library:
    """One of SOURCES, compiled.

    Args:
        path: what the compiler made of it.
        device: where tensors have to lie.
        watch: told before each call which tensors it may access, and which of them it writes; None to tell nobody.
        room: bytes that a product's matrices have on either side for themselves.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        watch: Callable[[dict[str, Tensor], frozenset[str]], None] | None,
        room: int = 0,
    ) -> None:
        self._functions = ctypes.CDLL(str(path))
        self.device = device
        self._watch = watch
        self._room = room

    def call(self, name: str, out: Tensor, inputs: dict[str, Tensor], *numbers: int) -> str:
        """Runs a function with the addresses of the tensors and some numbers; what it reported, empty when nothing."""
        function = getattr(self._functions, name)
        function.restype = ctypes.c_char_p
        tensors = {"out": out, **inputs}
        function.argtypes = [ctypes.c_void_p] * len(tensors) + [ctypes.c_int] * len(numbers)
        if self._watch is not None:
            self._watch(tensors, frozenset({"out"}))
        return function(*(t.data_ptr() for t in tensors.values()), *numbers).decode()

    def run(self, name: str, out: Tensor, inputs: dict[str, Tensor], *numbers: int) -> Tensor:
        """The same for a call that reports nothing; `out`."""
        report = self.call(name, out, inputs, *numbers)
        assert report == "", report
        return out

    def gemm(self, name: str, a: Tensor, b: Tensor, transposed_b: bool, fault: int = 0) -> tuple[str, Tensor]:
        """a (m, k) times b (n, k), or b (k, n) with transposed_b: the report, and float32 or int32 (m, n)."""
        (m, k), n = a.shape, b.shape[1 if transposed_b else 0]
        out = torch.full((m, n), -(2**30), dtype=torch.int32, device=self.device)
        out = out if a.dtype == torch.int8 else out.float().fill_(torch.nan)
        if self._room:
            a, b, out = (apart(t, self._room) for t in (a, b, out))
        numbers = (m, n, k, a.stride(0), b.stride(0), TYPES[a.dtype], transposed_b, fault)
        return self.call(f"run_{name}", out, {"a": a, "b": b}, *numbers), out


@functools.cache
def for_emulator(variant: str, name: str) -> tuple[Library, host_module.Emulator]:
    """For tensors on the CPU, and the switches of the emulator in it."""
    path = host_build.build_library(variant, [SOURCES[name]], bindings=False)
    emulator = host_module.Emulator(path)
    return Library(path, torch.device("cpu"), emulator.watch, ROOM if emulator.has_hooks else 0), emulator


@functools.cache
def for_gpu(arch: str, name: str) -> Library:
    """For tensors on the first GPU, compiled by nvcc."""
    toolkit, folder = cuda_build.find_toolkit(), host_build.ROOT / "build" / "cuda"
    assert toolkit is not None
    made = cuda_build.kernel_job(toolkit, SOURCES[name], [arch]).made(folder)
    link = [str(cuda_build.compiler()), "-shared", str(made), str(toolkit.cudart), "-ldl", "-lrt", "-lpthread"]
    return Library(compiling.made_once(link, [made], folder, f"{name}.so"), torch.device("cuda", 0), None)


def padded(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    draw: Callable[[int, int], Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """draw(rows, columns), its rows a multiple of 16 bytes apart; what lies between them is no part of the matrix."""
    width = 16 // dtype.itemsize
    stride = (columns + width - 1) // width * width
    held = torch.full((rows, stride), 99).to(dtype)
    held[:, :columns] = draw(rows, columns).to(dtype)
    return held.to(device)[:, :columns]


def apart(matrix: Tensor, room: int) -> Tensor:
    """The same matrix, in memory where nothing else lies within `room` bytes of it."""
    elements = room // matrix.element_size()
    held = matrix.new_zeros(elements + host_module.extent(matrix) // matrix.element_size() + elements)
    return held.as_strided(matrix.shape, matrix.stride(), elements).copy_(matrix)


def small_integers(rows: int, columns: int) -> Tensor:
    """Whole numbers whose products float32 sums exactly, in any order."""
    return torch.randint(-8, 9, (rows, columns))
