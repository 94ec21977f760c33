"""What nvcc makes of the kernels: registers, stack, spills and instructions of every instantiation, for one arch."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cuda_build

FOLDER = cuda_build.ROOT / "build" / "cuda"


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel as machine code."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: tuple[str, ...]


def cuobjdump() -> str | None:
    """The disassembler: of PATH, or the copy that Triton brings."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        brought = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if brought.is_file():
            return str(brought)
    return shutil.which("cuobjdump")


def kernels(source: Path, arch: str) -> list[Kernel]:
    """Every instantiation in a file of kernels."""
    toolkit, program = cuda_build.find_toolkit(), cuobjdump()
    assert toolkit is not None and program is not None
    folders = (cuda_build.CSRC, source.parent)
    headers = sorted({p for folder in folders for p in folder.rglob("*") if p.suffix in (".h", ".cuh")})
    command = [*cuda_build.kernel_command(toolkit, source, [arch]), "-cubin"]
    cubin = cuda_build.made_once(command, [source, *headers], FOLDER, f"{source.stem}.cubin")

    def dump(option: str) -> str:
        return subprocess.run([program, option, str(cubin)], capture_output=True, text=True, check=True).stdout

    # nothing here has an array that is not in registers, so that all of a stack is what was spilled
    usage = re.findall(r"Function (\w+):\n.*?REG:(\d+) STACK:(\d+) SHARED:(\d+)", dump("-res-usage"))
    bodies = {}
    for part in dump("-sass").split("Function : ")[1:]:
        names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", part, re.MULTILINE)
        bodies[part.split()[0]] = tuple(names)
    return [Kernel(n, int(r), int(s), int(m), bodies[n]) for n, r, s, m in usage]
