"""Builds fasttx._C: every .cu of csrc/ by nvcc, the bindings by the C++ compiler, linked with a static CUDA runtime.

Nothing of torch is needed, and nothing of the driver: the module loads on a machine without CUDA.  Objects lie in
build/cuda/ under a hash of all that goes into them, so that a second build compiles only what has changed.

Environment:
    FASTTX_CUDA: "auto" (the default) compiles where nvcc is found; "1" insists, and the build backend then brings nvcc
        from PyPI where there is none; "0" leaves the module out.
    FASTTX_CUDA_ARCHS: what to compile for, such as "80,90a,ptx90".
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
USUAL_HOME = Path("/usr/local/cuda")
DEFAULT_ARCHS = "80,86,89,90a,100,120,ptx120"


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


def archs() -> list[str]:
    """The names in FASTTX_CUDA_ARCHS."""
    names = os.environ.get("FASTTX_CUDA_ARCHS", DEFAULT_ARCHS).replace(" ", "").split(",")
    for name in names:
        number = name.removeprefix("ptx").rstrip("af")
        if not number.isdigit() or int(number) < 80:
            raise SystemExit(f"FASTTX_CUDA_ARCHS: {name!r} is none of 80, 86, 89, 90a, 100, 120, ... or ptx120")
    return names


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


def run(command: Sequence[str]) -> str:
    """Runs a compiler; what it printed.

    Raises:
        RuntimeError: it failed; the message has the command and the end of its output.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-8000:]}")
    return done.stdout + done.stderr


def made_once(command: Sequence[str], inputs: Sequence[Path], folder: Path, name: str) -> Path:
    """What `command -o FILE` makes of the inputs, from `folder` if the very same thing was made before.

    The file appears under its name when it is whole: another process never sees half of it.
    """
    digest = hashlib.sha256(repr(list(command)).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    stem, suffix = name.rsplit(".", 1)
    found = folder / f"{stem}-{digest.hexdigest()[:20]}.{suffix}"
    if not found.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / found.name
            run([*command, "-o", str(out)])
            os.replace(out, found)
    return found


def gencode(names: Sequence[str]) -> list[str]:
    """nvcc's options for these archs."""
    options = []
    for name in names:
        number = name.removeprefix("ptx")
        options.append(f"-gencode=arch=compute_{number},code={'compute' if name.startswith('ptx') else 'sm'}_{number}")
    return options


def kernel_command(toolkit: Toolkit, source: Path, names: Sequence[str]) -> list[str]:
    """How one file of kernels is compiled."""
    return [
        str(toolkit.nvcc), "-std=c++20", "-O3", "-ccbin", str(compiler()), "-Xcompiler=-fPIC,-fvisibility=hidden",
        f"-I{CSRC}", *gencode(names), "-c", str(source),
    ]  # fmt: skip


def build(target: Path, folder: Path) -> None:
    """Compiles and links fasttx._C.

    Args:
        target: the module's file.
        folder: where objects are kept.

    Raises:
        RuntimeError: a compiler failed.
    """
    toolkit, names = find_toolkit(), archs()
    assert toolkit is not None
    headers = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh"))
    of_kernels = [p for p in headers if p.parent.name != "bindings"]
    bindings = [
        str(compiler()), "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-DFASTTX_MODULE=_C",
        f'-DFASTTX_ARCHS="{",".join(names)}"', f"-I{CSRC}", "-isystem", str(pybind11_headers()),
        f"-I{sysconfig.get_paths()['include']}", "-c", str(CSRC / "bindings.cpp"),
    ]  # fmt: skip
    jobs = [(bindings, [CSRC / "bindings.cpp", *headers])]
    jobs += [(kernel_command(toolkit, source, names), [source, *of_kernels]) for source in sorted(CSRC.glob("*/*.cu"))]
    workers = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        made = list(pool.map(lambda job: made_once(*job, folder, f"{job[1][0].stem}.o"), jobs))
    link = [str(compiler()), "-shared", "-Wl,--exclude-libs,ALL", *map(str, made), str(toolkit.cudart)]
    module = made_once([*link, "-ldl", "-lrt", "-lpthread"], made, folder, "_C.so")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(module, target)
