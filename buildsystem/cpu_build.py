"""Builds fasttx._C_cpu, the int8 kernels for a CPU: csrc/cpu by the C++ compiler, in seconds.

csrc/cpu/kernels.cpp is compiled once for each form, a set of instructions, and the module chooses the fastest one that
the CPU has when it is loaded.  Nothing of torch or pybind11 is needed, only Python's headers.  Objects lie in
build/cpu/ under a hash of all that goes into them (compiling.py).

Environment:
    FASTTX_CPU: "auto" (the default) compiles where a C++ compiler and Python's headers are; "1" insists; "0" leaves the
        module out. Without it PyTorch's operators do the same.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from announce import say
from compiling import Job, made_all, made_once
from cuda_build import ROOT, compiler

SOURCES = ROOT / "csrc" / "cpu"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
FORMS: dict[str, list[str]] = {"portable": []}
"""The forms of this machine's architecture, with the compiler's options for their instructions."""
if platform.machine().lower() in ("x86_64", "amd64"):
    FORMS |= {"avx2": ["-mavx2"], "avx512": AVX512}


def wish() -> str:
    """What FASTTX_CPU asks for: "auto", "0" or "1"."""
    asked = os.environ.get("FASTTX_CPU", "auto")
    if asked not in ("auto", "0", "1"):
        raise SystemExit(f"FASTTX_CPU={asked!r}: allowed are 'auto', '0', '1'")
    return asked


def lacks() -> str | None:
    """What this machine has not got to build the module; None if all is there."""
    if sys.platform == "win32":
        return "the kernels are written for g++ and clang++"
    if compiler() is None:
        return "no C++ compiler was found (CXX, or g++ on PATH)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"Python's headers are missing (no {headers}/Python.h; the package python3-dev has it)"
    return None


def why_not() -> str | None:
    """Why the module is not compiled, with how to ask for it; None if it is.

    Raises:
        SystemExit: FASTTX_CPU=1 insists, and something lacks.
    """
    if wish() == "0":
        return "FASTTX_CPU=0: no int8 kernels for the CPU are compiled"
    lack = lacks()
    if lack is not None and wish() == "1":
        raise SystemExit(f"fasttx: FASTTX_CPU=1 asks for the int8 kernels for the CPU, but {lack}")
    return None if lack is None else f"no int8 kernels for the CPU are compiled, as {lack}"


def jobs(sources: Path = SOURCES) -> list[Job]:
    """Everything that is compiled for the module: sums may not be contracted, so that all forms have the same bits."""
    common = [str(compiler()), "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"]
    exact = ["-ffp-contract=off", "-fno-math-errno"]
    found = [
        Job(
            [*common, *exact, *options, f"-DFTX_FORM={form}", "-c", str(sources / "kernels.cpp")],
            [sources / "kernels.cpp"],
            f"{form}.o",
            lists="-MMD",
        )
        for form, options in FORMS.items()
    ]
    python = f"-I{sysconfig.get_paths()['include']}"
    for name in ("module", "threads"):
        source = sources / f"{name}.cpp"
        found.append(Job([*common, python, "-c", str(source)], [source], f"{name}.o", lists="-MMD"))
    return found


def link(todo: list[Job], folder: Path) -> Path:
    """The module's file in `folder`, compiled and linked."""
    made = made_all(todo, folder)
    more = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-ldl", "-lpthread"]
    return made_once([str(compiler()), "-shared", *map(str, made), *more], made, folder, "_C_cpu.so")


def build(target: Path, folder: Path) -> None:
    """Compiles and links fasttx._C_cpu to `target`; objects are kept in `folder`.

    Raises:
        RuntimeError: the compiler failed.
    """
    todo = jobs()
    say(f"compiling {len(todo)} files of the int8 kernels for the CPU by {compiler()}, some seconds")
    module = link(todo, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(module, target)
