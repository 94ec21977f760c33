"""Compiles csrc/ for the emulator: `_C_host`, a module with the interface of fasttx._C whose kernels run on the CPU.

    python tests/emulator/host_build.py [plain | race | asan ...]

builds what the tests load, of all variants or of some; `make test` begins with it, and so does a run of pytest that
needs it, before its first test.  All is kept in build/emulator/ under a hash of everything that goes into it: a run
that changes nothing compiles nothing, and one that changes a header the files that include it.  Three variants:
"plain"; "race", whose kernels are compiled with hooks at each access; "asan", under AddressSanitizer and
UndefinedBehaviorSanitizer, for a process of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "buildsystem"))  # as a program; pytest has it there

from announce import say  # noqa: E402
from compiling import Job, made_all  # noqa: E402
from cuda_build import compiler, pybind11_headers  # noqa: E402

HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "emulator"
RUNTIME = sorted((HERE / "runtime").glob("*.cpp"))
KERNELS = sorted((ROOT / "csrc").glob("*/*.cu"))
BINDINGS = ROOT / "csrc" / "bindings.cpp"
ALONE = sorted(HERE.glob("*.cu"))
"""Kernels of the tests, each a library of its own."""
SANITIZED_ALONE = ("cluster_faults", "gemm_sm80", "gemm_sm90")
"""Those of them that tests load in the variant "asan"."""

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


def _csrc(source: Path) -> Path:
    """The csrc/ that a source includes from: the one that it lies in, which may be a copy."""
    return next((folder for folder in source.parents if folder.name == "csrc"), ROOT / "csrc")


def _flags(*more: str, csrc: Path = ROOT / "csrc") -> list[str]:
    return [
        "-std=c++20",
        "-g1",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-gnu-unique",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-DFASTTX_EMULATE",
        f"-I{HERE / 'include'}",
        f"-I{csrc}",
        "-isystem",
        str(cuda_headers()),
        *more,
    ]


@functools.cache
def _contents(folder: Path) -> str:
    """Stands for the headers in a folder, wherever that lies."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _key(command: Sequence[str]) -> list[str]:
    """The command with headers by what they hold: environments with the same ones share what is built.

    And those of ours that CUDA's headers include: the compiler's list of what it read leaves them out.
    """
    cuda, pybind11 = cuda_headers(), pybind11_headers()
    assert cuda is not None and pybind11 is not None
    same = {str(cuda): _contents(cuda), str(pybind11): _contents(pybind11 / "pybind11")}
    return [*(same.get(part, part) for part in command), _contents(HERE / "include" / "nv")]


def _object(source: Path, flags: list[str]) -> Job:
    command = [str(compiler()), *flags, "-c", str(source)]
    return Job(command, [source], f"{source.stem}.o", _key(command), lists="-MMD")


def _objects(variant: str, sources: Sequence[Path], bindings: bool) -> list[Job]:
    everywhere, of_kernels = VARIANTS[variant]
    as_cuda = ["-O1", "-include", "cuda_emulator.h", "-x", "c++"]
    jobs = [_object(s, _flags("-O2", f"-I{HERE / 'runtime'}", *everywhere)) for s in RUNTIME]
    jobs += [_object(s, _flags(*as_cuda, *everywhere, *of_kernels, csrc=_csrc(s))) for s in sources]
    if bindings:
        python = sysconfig.get_paths()["include"]
        module = ["-DFASTTX_MODULE=_C_host", '-DFASTTX_ARCHS=""', "-isystem", str(pybind11_headers()), f"-I{python}"]
        jobs.append(_object(BINDINGS, _flags("-O1", *everywhere, *module)))
    return jobs


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Of two processes one compiles, and the other finds it done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(jobs: Sequence[Job], what: str) -> None:
    """Compiles those of the jobs that were not done before, and says so if there are any."""
    lacking = list({job.list_in(CACHE): job for job in jobs if job.found(CACHE) is None}.values())
    if lacking:
        say(f"building the emulator ({what}): {len(lacking)} files by {compiler()}")
        made_all(lacking, CACHE)


def build_library(variant: str, sources: Sequence[Path], bindings: bool) -> Path:
    """A shared library of kernels, the runtime and, if asked for, the Python module `_C_host`.

    Args:
        variant: "plain", "race" or "asan".
        sources: files of kernels.
        bindings: whether csrc/bindings.cpp is in it.

    Raises:
        RuntimeError: the compiler failed; the message has its command and what it said.
    """
    with _alone():
        jobs = _objects(variant, sources, bindings)
        _compile(jobs, variant)
        objects = [job.made(CACHE) for job in jobs]
        link = [str(compiler()), *VARIANTS[variant][0], "-shared", *map(str, objects), "-ldl"]
        return Job(link, objects, f"{variant}.so").made(CACHE)


def libraries(variants: Sequence[str]) -> list[tuple[str, list[Path], bool]]:
    """What the tests load in these variants, as arguments of `build_library`."""
    found: list[tuple[str, list[Path], bool]] = []
    for variant in variants:
        found.append((variant, KERNELS, True))
        found += [(variant, [s], False) for s in ALONE if variant != "asan" or s.stem in SANITIZED_ALONE]
    return found


def prepare(wanted: Sequence[tuple[str, list[Path], bool]]) -> None:
    """Builds libraries, all their files side by side.

    Raises:
        RuntimeError: the compiler failed.
    """
    with _alone():
        variants = ", ".join(dict.fromkeys(variant for variant, _, _ in wanted))
        _compile([job for library in wanted for job in _objects(*library)], variants)
    for library in wanted:
        build_library(*library)


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


def main() -> None:
    variants = sys.argv[1:] or list(VARIANTS)
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown:
        raise SystemExit(f"variants: got {unknown[0]!r}; allowed are {', '.join(map(repr, VARIANTS))}")
    if lacks() is not None:
        print(f"fasttx: the tests of CUDA C++ are skipped: {lacks()}")
        return
    try:
        prepare(libraries(variants))
    except RuntimeError as problem:
        raise SystemExit(f"fasttx: the emulator cannot be built\n{problem}") from None


if __name__ == "__main__":
    main()
