"""What this machine has, and what it lacks and would gain: the first part of `doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fasttx

from ..ops.availability import cpu_model, lacks_to_launch_triton
from ..ops.backends import wrong_name
from ..ops.cpu import launch as cpu
from ..ops.cuda.launch import built_for, why_not_loaded

PACKAGES = ("torch", "triton", "transformers", "numpy", "safetensors", "peft", "sentence-transformers", "accelerate")


@dataclass(frozen=True)
class Missing:
    """Something this machine lacks: what it would bring, and how to get it."""

    what: str
    brings: str
    how: str


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, of PATH, or of the package nvidia-cuda-nvcc; None where there is none."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folders += [found / "bin" for found in sorted(Path(place).glob("cu*"), reverse=True)]
    for folder in folders:
        if (folder / "nvcc").is_file():
            return str(folder / "nvcc")
    return shutil.which("nvcc")


def _driver() -> str | None:
    """The NVIDIA driver's version, asked of nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def devices() -> list[dict[str, Any]]:
    """The CPU and every GPU that torch sees."""
    found: list[dict[str, Any]] = [{"device": "cpu", "name": cpu_model(), "threads": torch.get_num_threads()}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    return found


def describe() -> dict[str, Any]:
    """Versions and devices, as JSON can hold them."""
    forced = os.environ.get("FASTTX_BACKEND", "auto")
    return {
        "fasttx": fasttx.__version__,
        "location": str(Path(fasttx.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "driver": _driver(),
        "nvcc": find_nvcc(),
        "compiled_kernels": built_for(),
        "compiled_kernels_problem": why_not_loaded(),
        "cpu_kernels": cpu.built_form(),
        "cpu_kernels_problem": cpu.why_not_loaded(),
        "triton_launcher": lacks_to_launch_triton(),
        "forced_backend": forced,
        "forced_backend_problem": wrong_name("FASTTX_BACKEND", forced),
        "devices": devices(),
    }


def missing(found: dict[str, Any]) -> list[Missing]:
    """What is not there, from the result of :func:`describe`; none of it is needed for right results."""
    lacks: list[Missing] = []
    gpus = [device for device in found["devices"] if device["device"] != "cpu"]
    packages = found["packages"]
    if not gpus:
        if found["driver"] is None:
            how = "an NVIDIA GPU of compute capability 8.0 or more, with its driver"
        elif found["torch_cuda"] is None:
            how = "a CUDA build of PyTorch: this one has none, though a driver is there"
        else:
            how = (
                f"a GPU that torch {packages['torch']} (CUDA {found['torch_cuda']}) can see; under driver "
                f"{found['driver']} it sees none: update the driver, or look at CUDA_VISIBLE_DEVICES"
            )
        brings = "the fused kernels; without it every op runs as PyTorch's own operators"
        lacks.append(Missing("NVIDIA GPU", brings, how))
    for gpu in gpus:
        if float(gpu.get("capability", 0)) < 8.0:
            what = f"compute capability 8.0 on {gpu['device']} (it has {gpu['capability']})"
            lacks.append(Missing(what, "the fused kernels on that GPU", "an Ampere GPU or a later one"))
    if found["compiled_kernels"] is None:
        how = "nvcc and a C++ compiler, then an installation from source (FASTTX_CUDA=1 brings nvcc from PyPI)"
        if found["nvcc"] is not None:
            how = f"an installation from source with {found['nvcc']}, which is here, and a C++ compiler"
        lacks.append(Missing("compiled kernels (fasttx._C)", "the backend cuda, on an NVIDIA GPU", how))
    if found["cpu_kernels"] is None:
        how = "a C++ compiler (g++ or clang++) and Python's headers, then an installation from source"
        brings = "int8 on a CPU by kernels of its own; without it PyTorch's operators compute the same"
        lacks.append(Missing("kernels for the CPU (fasttx._C_cpu)", brings, how))
    if packages["triton"] is None:
        if platform.system() == "Linux":
            how = "pip install triton (CUDA builds of PyTorch bring the one that fits them)"
        else:
            how = "Linux; Triton has no build for this system"
        lacks.append(Missing("triton", "the Triton kernels on an NVIDIA GPU", how))
    elif gpus and found["triton_launcher"] is not None:
        how = found["triton_launcher"].removeprefix("needs ")
        lacks.append(Missing("launcher for Triton", "the Triton kernels on an NVIDIA GPU", how))
    if packages["transformers"] is None:
        brings = "fasttx.patch and attn_implementation='fasttx'"
        lacks.append(Missing("transformers", brings, "pip install 'fasttx[hf]'"))
    return lacks
