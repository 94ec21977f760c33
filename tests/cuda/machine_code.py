"""What nvcc makes of the kernels: registers, stack, spills and instructions of every instantiation, for one arch."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cuda_build
from compiling import messages_of

FOLDER = cuda_build.ROOT / "build" / "cuda"
SERIALISED = re.compile(r"\(C75\d\d\)")
"""ptxas says so where it made wgmma wait for each other (C7510), put in a warpgroup.arrive (C7519), or left out a
setmaxnreg (C7508)."""
SPILLED = re.compile(r"\b[1-9]\d* bytes (?:stack frame|spill stores|spill loads)")


@dataclass(frozen=True)
class Instruction:
    """A line of machine code, such as `@P0 LDG.E.128 R4, desc[UR4][R2.64]`."""

    address: int
    text: str

    @functools.cached_property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].rstrip(",")

    @functools.cached_property
    def operands(self) -> list[str]:
        return [part.strip() for part in self.text.partition(self.name)[2].split(",")]

    @functools.cached_property
    def registers(self) -> frozenset[int]:
        """All that are named, and those that a wide access has besides."""
        width = 4 if ".128" in self.name else 2 if ".64" in self.name else 1
        product = re.match(r"[HI]GMMA\.64x(\d+)x", self.name)  # of the accumulators the first one is named
        found = [int(number) for number in re.findall(r"\bR(\d+)\b", self.text.partition(self.name)[2])]
        beyond = {found[0] + i for i in range(int(product[1]) // 2 if product else width)} if found else set()
        return frozenset(beyond | set(found))

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        match = re.search(r"\b0x([0-9a-f]+)\b", self.text) if self.name.startswith("BRA") else None
        return int(match[1], 16) if match else None


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel as machine code."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    code: tuple[Instruction, ...]

    @functools.cached_property
    def instructions(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(i.name for i in self.code)

    @functools.cached_property
    def highest_register(self) -> int:
        """Of those that it uses; with setmaxnreg `registers` is what a launch gives, not what a warp has later."""
        return max((max(i.registers, default=-1) for i in self.code), default=-1)

    @functools.cached_property
    def most_registers(self) -> int:
        """That a thread may use: what setmaxnreg asks for, or what the launch gives."""
        asked = [int(i.operands[-1], 16) for i in self.code if i.name.startswith("USETMAXREG")]
        return max(asked, default=self.registers)

    @functools.cached_property
    def loops(self) -> list[tuple[Instruction, ...]]:
        """The instructions from where a branch goes back to, to the branch; the shortest first."""
        found = [
            tuple(other for other in self.code if i.target <= other.address <= i.address)
            for i in self.code
            if i.target is not None and i.target < i.address
        ]
        return sorted(found, key=len)


def cuobjdump() -> str | None:
    """The disassembler: of PATH, or the copy that Triton brings."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        brought = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if brought.is_file():
            return str(brought)
    return shutil.which("cuobjdump")


def compiled(source: Path, arch: str) -> Path:
    """The machine code of a file of kernels, with what ptxas said beside it."""
    toolkit = cuda_build.find_toolkit()
    assert toolkit is not None
    return cuda_build.kernel_job(toolkit, source, [arch], "cubin", ["-cubin"]).made(FOLDER)


def complaints(source: Path, arch: str) -> list[str]:
    """Kernels, and lines of ptxas's messages that none may have: products that wait for each other, spills, a stack."""
    found, kernel = [], ""
    for line in messages_of(compiled(source, arch)).read_text().splitlines():
        kernel = line.split("'")[1] if "Compiling entry function" in line else kernel
        if SERIALISED.search(line) or SPILLED.search(line):
            found.append(f"{kernel}: {line.strip()}")
    return found


def kernels(source: Path, arch: str) -> list[Kernel]:
    """Every instantiation in a file of kernels."""
    program, cubin = cuobjdump(), compiled(source, arch)
    assert program is not None

    def dump(option: str) -> str:
        return subprocess.run([program, option, str(cubin)], capture_output=True, text=True, check=True).stdout

    # nothing here has an array that is not in registers, so that all of a stack is what was spilled
    usage = re.findall(r"Function (\w+):\n.*?REG:(\d+) STACK:(\d+) SHARED:(\d+)", dump("-res-usage"))
    bodies = {}
    for part in dump("-sass").split("Function : ")[1:]:
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?[A-Z][^;]*?)\s*;", part, re.MULTILINE)
        bodies[part.split()[0]] = tuple(Instruction(int(address, 16), text) for address, text in lines)
    return [Kernel(n, int(r), int(s), int(m), bodies[n]) for n, r, s, m in usage]
