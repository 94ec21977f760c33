"""Builds fasttx._C: every .cu of csrc/ by nvcc, the bindings by the C++ compiler, linked with a static CUDA runtime.

Nothing of torch is needed, and nothing of the driver: the module loads on a machine without CUDA.  Objects lie in
build/cuda/ under a hash of all that goes into them (compiling.py), so that a second build compiles only what has
changed, each with ptxas's messages beside it.

Environment:
    FASTTX_CUDA: "auto" (the default) compiles where nvcc and an NVIDIA GPU are found; "1" insists, without a GPU too,
        and the build backend then brings nvcc from PyPI where there is none; "0" leaves the module out.
    FASTTX_CUDA_ARCHS: what to compile for, such as "80,90a,ptx90"; naming some is asking for the module. By default an
        editable installation is for the GPUs of this machine; a wheel, which may be for another one, and FASTTX_CUDA=1
        are for DEFAULT_ARCHS.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from announce import say
from compiling import Job, made_all, made_once

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
USUAL_HOME = Path("/usr/local/cuda")
DEFAULT_ARCHS = "80,86,89,90a,100,120,ptx120"
ARCH_BY_NAME = {"_sm90": "90a"}
"""Of the archs that a file is compiled for, by how its name ends: others have not got its instructions."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its compiler and its static runtime."""

    nvcc: Path
    cudart: Path


def wish() -> str:
    """What FASTTX_CUDA asks for: "auto", "0" or "1"."""
    asked = os.environ.get("FASTTX_CUDA", "auto")
    if asked not in ("auto", "0", "1"):
        raise SystemExit(f"FASTTX_CUDA={asked!r}: allowed are 'auto', '0', '1'")
    return asked


def devices() -> list[str]:
    """The archs of the NVIDIA GPUs here, by the driver; those of compute capability 8.0 or more."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []

    def ask(function: str, *arguments: int) -> int:
        value = ctypes.c_int()
        return value.value if getattr(driver, function)(ctypes.byref(value), *arguments) == 0 else 0

    if driver.cuInit(0) != 0:
        return []
    usual = {name.rstrip("af"): name for name in DEFAULT_ARCHS.split(",")}
    found: dict[str, None] = {}
    for i in range(ask("cuDeviceGetCount")):
        device = ask("cuDeviceGet", i)
        major, minor = (ask("cuDeviceGetAttribute", attribute, device) for attribute in (75, 76))
        if major >= 8:
            number = str(10 * major + minor)
            found[usual.get(number, number)] = None
    return list(found)


def _named() -> str | None:
    return os.environ.get("FASTTX_CUDA_ARCHS")


def archs(editable: bool = False) -> list[str]:
    """The names in FASTTX_CUDA_ARCHS; without it those of an editable installation here, or of a wheel."""
    here = ",".join(devices()) if editable and wish() == "auto" else ""
    named = _named()
    names = ((here or DEFAULT_ARCHS) if named is None else named).replace(" ", "").split(",")
    for name in names:
        number = name.removeprefix("ptx").rstrip("af")
        if not number.isdigit() or int(number) < 80:
            raise SystemExit(f"FASTTX_CUDA_ARCHS: {name!r} is none of 80, 86, 89, 90a, 100, 120, ... or ptx120")
    return names


def has_use() -> bool:
    """Whether someone here asked for the module, or has a GPU for it."""
    return wish() == "1" or (wish() == "auto" and (_named() is not None or bool(devices())))


def _homes() -> list[Path]:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    spec = importlib.util.find_spec("nvidia")  # PyPI's cuda-toolkit
    for place in (spec.submodule_search_locations or []) if spec else []:
        homes += sorted(Path(place).glob("cu*"), reverse=True)
    on_path = shutil.which("nvcc")
    if on_path is not None:  # a wrapper there has no toolkit around it: the usual place follows
        homes += [Path(os.path.realpath(on_path)).parent.parent, USUAL_HOME]
    return homes


def find_toolkit() -> Toolkit | None:
    """The first whole toolkit of CUDA_HOME, PyPI's packages and PATH; None without one."""
    for home in _homes():
        nvcc = home / "bin" / "nvcc"
        libraries = (home / "lib64", home / "lib", home / "targets" / f"{platform.machine()}-linux" / "lib")
        cudart = next((f / "libcudart_static.a" for f in libraries if (f / "libcudart_static.a").is_file()), None)
        if nvcc.is_file() and cudart is not None:
            return Toolkit(nvcc, cudart)
    return None


def pybind11_headers() -> Path | None:
    """The folder of pybind11's headers: of the package, or the copy that torch brings."""
    for package in ("pybind11", "torch"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / "include"
            if (folder / "pybind11" / "pybind11.h").is_file():
                return folder
    return None


def compiler() -> str | None:
    """The C++ compiler: CXX, else g++; None without one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def lacks() -> str | None:
    """What this machine has not got to build the module; None if all is there."""
    if find_toolkit() is None:
        return "no nvcc was found in CUDA_HOME, PyPI's cuda-toolkit or PATH"
    if compiler() is None:
        return "no C++ compiler was found (CXX, or g++ on PATH)"
    if pybind11_headers() is None:
        return "pybind11's headers are missing (pip install pybind11)"
    return None


def why_not() -> str | None:
    """Why nothing is compiled, with how to ask for it; None if it is.

    Raises:
        SystemExit: FASTTX_CUDA=1 insists, and something lacks.
    """
    if wish() == "0":
        return "FASTTX_CUDA=0: no CUDA C++ kernels are compiled"
    lack = lacks()
    if wish() == "1":
        if lack is not None:
            raise SystemExit(f"fasttx: FASTTX_CUDA=1 asks for the kernels in CUDA C++, but {lack}")
        return None
    if not has_use():
        return "no CUDA C++ kernels are compiled, as no NVIDIA GPU (8.0 or later) is here; FASTTX_CUDA=1 compiles them"
    if lack is not None:
        return f"no CUDA C++ kernels are compiled, as {lack}; FASTTX_CUDA=1 brings nvcc from PyPI"
    return None


def gencode(names: Sequence[str]) -> list[str]:
    """nvcc's options for these archs."""
    options = []
    for name in names:
        number = name.removeprefix("ptx")
        options.append(f"-gencode=arch=compute_{number},code={'compute' if name.startswith('ptx') else 'sm'}_{number}")
    return options


def archs_of(source: Path, names: Sequence[str]) -> list[str]:
    """Those of the archs that a file is compiled for: all, or, by its name, those that have its instructions."""
    own = next((arch for ending, arch in ARCH_BY_NAME.items() if source.stem.endswith(ending)), None)
    return [name for name in names if own in (None, name)]


def kernel_command(toolkit: Toolkit, source: Path, names: Sequence[str]) -> list[str]:
    """How one file of kernels is compiled for these archs; where it is for none of them, its launchers say so."""
    command = [str(toolkit.nvcc), "-std=c++20", "-O3", "-ccbin", str(compiler()), f"-I{CSRC}"]
    command.append("-Xcompiler=-fPIC,-fvisibility=hidden")
    own = archs_of(source, names)
    if own:
        command += ["-lineinfo", "-Xptxas", "-v", *gencode(own)]
    else:
        lacking = next(arch for ending, arch in ARCH_BY_NAME.items() if source.stem.endswith(ending))
        command += ["-x", "c++", f'-DFASTTX_ABSENT_ARCH="{lacking}"']
    return [*command, "-c", str(source)]


def kernel_job(
    toolkit: Toolkit, source: Path, names: Sequence[str], suffix: str = "o", more: Sequence[str] = ()
) -> Job:
    """The same with what ptxas says of each kernel beside the output; `more` options, such as -cubin."""
    command = [*kernel_command(toolkit, source, names), *more]
    return Job(command, [source], f"{source.stem}.{suffix}", lists="-MD", keeps_messages=True)


def jobs(toolkit: Toolkit, names: Sequence[str]) -> list[Job]:
    """Everything that is compiled for the module."""
    bindings = [
        *(str(compiler()), "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DFASTTX_MODULE=_C"),
        *(f'-DFASTTX_ARCHS="{",".join(names)}"', f"-I{CSRC}", "-isystem", str(pybind11_headers())),
        *(f"-I{sysconfig.get_paths()['include']}", "-c", str(CSRC / "bindings.cpp")),
    ]
    sources = sorted(CSRC.glob("*/*.cu"))
    twice = {p.stem for p in sources if sum(q.stem == p.stem for q in sources) > 1}
    if twice:
        raise RuntimeError(f"csrc/: two files are called {min(twice)}.cu; objects are kept by that name")
    found = [Job(bindings, [CSRC / "bindings.cpp"], "bindings.o", lists="-MD")]
    return found + [kernel_job(toolkit, source, names) for source in sources]


def _start(names: Sequence[str], files: int, toolkit: Toolkit) -> str:
    """What a build says first: for which devices it compiles, and how to choose them."""
    own = ",".join(devices())
    if _named() is not None:
        choice = "as FASTTX_CUDA_ARCHS says"
    elif own and list(names) != own.split(","):
        choice = f"FASTTX_CUDA_ARCHS={own} compiles for this machine alone, FASTTX_CUDA=0 nothing"
    else:
        choice = "FASTTX_CUDA_ARCHS=80,90a compiles for those two alone, FASTTX_CUDA=0 nothing"
    return f"compiling {files} files of CUDA C++ for {', '.join(names)} by {toolkit.nvcc}, some minutes ({choice})"


def build(target: Path, folder: Path, names: Sequence[str] | None = None) -> None:
    """Compiles and links fasttx._C, and says how far it is.

    Args:
        target: the module's file.
        folder: where objects are kept.
        names: the archs; None for those of `archs()`.

    Raises:
        RuntimeError: a compiler failed.
    """
    toolkit, names = find_toolkit(), archs() if names is None else names
    assert toolkit is not None
    todo = jobs(toolkit, names)
    say(_start(names, len(todo), toolkit))
    made = made_all(todo, folder)
    link = [str(compiler()), "-shared", "-Wl,--exclude-libs,ALL", *map(str, made), str(toolkit.cudart)]
    module = made_once([*link, "-ldl", "-lrt", "-lpthread"], made, folder, "_C.so")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(module, target)
