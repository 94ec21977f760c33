"""Which compiled backends this machine can run: device, compute capability, fasttx._C, Triton and its launcher."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch

from .cpu import launch as cpu
from .cuda import launch as cuda


@functools.cache
def _triton_present() -> bool:
    return importlib.util.find_spec("triton") is not None


def find_c_compiler() -> str | None:
    """The C compiler that Triton would call: ``CC`` if it is set, else gcc or clang of ``PATH``; None without one."""
    named = os.environ.get("CC")
    return shutil.which(named) if named is not None else shutil.which("gcc") or shutil.which("clang")


@functools.cache
def lacks_to_launch_triton() -> str | None:
    """What Triton needs on a machine, besides the GPU, to launch a kernel it has compiled; None if all is there.

    At the first launch Triton compiles a small C module against Python's headers, and raises where it cannot.
    """
    if find_c_compiler() is None:
        named = os.environ.get("CC")
        where = "gcc or clang on PATH, or one named by CC" if named is None else f"CC={named!r} is no program"
        return f"needs a C compiler for Triton's launcher ({where})"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton itself asks
    headers = os.path.join(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not os.path.isfile(headers) and not (os.environ.get("CPATH") or os.environ.get("C_INCLUDE_PATH")):
        return f"needs Python's headers for Triton's launcher (no {headers}; the package python3-dev has it)"
    return None


@functools.cache
def cpu_model() -> str:
    """How many processors of which model this machine has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _arch(device_index: int) -> int:
    major, minor = torch.cuda.get_device_capability(device_index)
    return major * 10 + minor


def compiles_when_loaded(backend_name: str, device: torch.device) -> bool:
    """Whether the first launch of a backend on `device` waits for the driver's compiler."""
    return backend_name == "cuda" and device.type == "cuda" and cuda.compiles_when_loaded(device, _arch(_index(device)))


def _index(device: torch.device) -> int:
    return device.index if device.index is not None else torch.cuda.current_device()


able: set[tuple[str, torch.device, int]] = set()
"""Backends that a GPU was found to run, with the lowest capability that was asked for: that does not change."""


def cannot_run_on(backend_name: str, device: torch.device, min_arch: int) -> str | None:
    """The reason why a compiled backend cannot run on `device`, or None."""
    if backend_name == "cpu":
        return cpu.why_not(device)
    if backend_name == "triton" and not _triton_present():
        return "triton is not installed (pip install triton)"
    if device.type == "cuda" and torch.version.hip is None:
        arch = _arch(_index(device))
        if arch < min_arch:
            return f"needs compute capability {min_arch}, the device has {arch}"
        if backend_name == "cuda":
            reason = cuda.why_not(device, arch)
        else:
            reason = None if _interpreting() else lacks_to_launch_triton()
        if reason is None:
            able.add((backend_name, device, min_arch))
        return reason
    if backend_name == "triton" and device.type in ("cpu", "cuda") and _interpreting():
        return None
    if backend_name == "cuda" and cuda.why_not(device, None) is None:
        return None
    return f"needs an NVIDIA GPU, the tensors are on '{device.type}'" + (
        " (TRITON_INTERPRET=1 runs it on a CPU, for tests)" if backend_name == "triton" else ""
    )
