"""Compiles csrc/ for the emulator: `_C_host`, a module with the interface of fasttx._C whose kernels run on the CPU.

Built on demand and kept in build/emulator/ under a hash of everything that goes into it: a run that changes nothing
compiles nothing.  Three variants: "plain"; "race", whose kernels are compiled with hooks at each access; "asan",
under AddressSanitizer and UndefinedBehaviorSanitizer, for a process of its own.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_build import compiler, made_once, pybind11_headers

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "emulator"
RUNTIME = sorted((HERE / "runtime").glob("*.cpp"))
KERNELS = sorted((ROOT / "csrc").glob("*/*.cu"))
BINDINGS = ROOT / "csrc" / "bindings.cpp"

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# The thread sanitizer's calls are answered by runtime/hooks.cpp; guards of static variables would call libtsan itself.
HOOKS = ["-fsanitize=thread", "-fno-threadsafe-statics"]
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "plain": ([], []),
    "race": ([], HOOKS),
    "asan": (SANITIZERS, []),
}
"""Flags of every file, and those of kernels besides."""


def cuda_headers() -> Path | None:
    """A folder with cuda_fp16.h: Triton's own copy, or that of a CUDA toolkit."""
    folders = [Path(os.environ[n]) / "include" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.insert(0, Path(triton.origin).parent / "backends" / "nvidia" / "include")
    folders.append(Path("/usr/local/cuda/include"))
    return next((f for f in folders if (f / "cuda_bf16.h").is_file()), None)


def lacks() -> str | None:
    """What this machine has not got to build the module; None if all is there."""
    if compiler() is None:
        return "the emulator needs g++"
    if cuda_headers() is None:
        return "the emulator needs CUDA's headers (pip install triton brings them)"
    if pybind11_headers() is None:
        return "the emulator needs pybind11's headers (pip install pybind11)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the emulator needs Python's headers (python3-dev)"
    return None


def _flags(*more: str) -> list[str]:
    return [
        "-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing",
        "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DFASTTX_EMULATE",
        f"-I{HERE / 'include'}", f"-I{ROOT / 'csrc'}", "-isystem", str(cuda_headers()), *more,
    ]  # fmt: skip


def inputs(source: Path) -> list[Path]:
    """The source and every header of ours, those of the bindings for them alone: a superset of what it includes."""
    headers = [p for folder in (ROOT / "csrc", HERE) for p in folder.rglob("*") if p.suffix in (".h", ".cuh")]
    headers = [p for p in headers if source == BINDINGS or p.parent.name != "bindings"]
    return [source, HERE / "include" / "nv" / "target", *sorted(headers)]


def _object(source: Path, flags: list[str]) -> Path:
    return made_once([str(compiler()), *flags, "-c", str(source)], inputs(source), CACHE, f"{source.stem}.o")


def build_library(variant: str, sources: Sequence[Path], bindings: bool) -> Path:
    """A shared library of kernels, the runtime and, if asked for, the Python module `_C_host`.

    Args:
        variant: "plain", "race" or "asan".
        sources: files of kernels.
        bindings: whether csrc/bindings.cpp is in it.
    """
    everywhere, of_kernels = VARIANTS[variant]
    as_cuda = ["-O1", "-include", "cuda_emulator.h", "-x", "c++"]
    jobs = [(s, _flags("-O2", f"-I{HERE / 'runtime'}", *everywhere)) for s in RUNTIME]
    jobs += [(s, _flags(*as_cuda, *everywhere, *of_kernels)) for s in sources]
    if bindings:
        python = sysconfig.get_paths()["include"]
        module = ["-DFASTTX_MODULE=_C_host", '-DFASTTX_ARCHS=""']
        jobs.append((BINDINGS, _flags("-O1", *everywhere, *module, "-isystem", str(pybind11_headers()), f"-I{python}")))
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two workers one compiles, and the other finds it done
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: _object(*job), jobs))
        link = [str(compiler()), *everywhere, "-shared", *map(str, objects), "-ldl"]
        return made_once(link, objects, CACHE, f"{variant}.so")


def sanitizer_environment() -> dict[str, str]:
    """Of a process that loads the variant "asan"."""
    libraries = [
        subprocess.run([str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return os.environ | {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


def build_module(variant: str) -> Path:
    """The module `_C_host` with every kernel of csrc/."""
    return build_library(variant, KERNELS, bindings=True)
