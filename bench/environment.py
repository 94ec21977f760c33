"""What a figure depends on: versions, device, clocks, commit, and two rates of the machine measured in the same run."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from fasttx.ops.availability import cpu_model

from .timer import interleaved

PEERS = ("liger-kernel", "cut-cross-entropy")
"""Packages that ops are measured against where they are installed."""
_CLOCKS = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,"
    "clocks_throttle_reasons.active"
)


def device_of(name: str | None) -> torch.device:
    """The device of that name; without one the GPU, or the CPU where torch sees none."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _output(*command: str, cwd: Path | None = None) -> str:
    """The first line a command prints, or the reason why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"unknown ({type(problem).__name__}: {command[0]})"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def commit() -> str:
    """The commit of the checkout this file lies in; '+' marks uncommitted changes to tracked files."""
    here = Path(__file__).resolve().parent
    found = _output("git", "rev-parse", "--short=12", "HEAD", cwd=here)
    if found.startswith(("fatal", "unknown", "error")):
        return "unknown (no git checkout)"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", cwd=here)
    return found + ("" if changed == "unknown" else "+")


def versions() -> dict[str, str]:
    """Python, and every package a figure may depend on; 'missing' where it is not installed."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda), "os": platform.platform()}
    for name in ("torch", "triton", "transformers", "numpy", "sentence-transformers", *PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def clocks() -> str:
    """Driver, clocks, power and throttling of the first GPU as nvidia-smi gives them at this moment."""
    return _output("nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader")


def describe(device: torch.device) -> dict[str, str]:
    """Everything that identifies the machine and the code."""
    found = {"commit": commit(), **versions(), "cpu": cpu_model(), "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "SMs": str(properties.multi_processor_count),
            "memory_GiB": f"{properties.total_memory / 2**30:.0f}",
            "L2_MiB": f"{properties.L2_cache_size / 2**20:.0f}",
            "cudnn": str(torch.backends.cudnn.version()),
            "clocks": clocks(),
        }
    else:
        found["device"] = "cpu"
    return found


def rates(device: torch.device, *, tiny: bool = False) -> dict[str, float]:
    """The machine's own speed in this run.

    Returns:
        copy_GBps: bytes read plus written by a device copy that exceeds the cache; bf16_gemm_TFLOPs: a square product
        (8192 on a GPU, 512 on a CPU in float32, named fp32_gemm_TFLOPs there).
    """
    on_gpu = device.type == "cuda"
    n_copy = 1 << (16 if tiny else 30 if on_gpu else 26)
    source = torch.randint(0, 255, (n_copy,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    n = 64 if tiny else 8192 if on_gpu else 512
    dtype = torch.bfloat16 if on_gpu else torch.float32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    found = interleaved(
        {"copy": lambda _: target.copy_(source), "gemm": lambda _: a @ b}, device, rounds=3 if tiny else 9, batch_ms=10
    )
    name = "bf16_gemm_TFLOPs" if on_gpu else "fp32_gemm_TFLOPs"
    return {"copy_GBps": 2 * n_copy / found["copy"].median / 1e6, name: 2 * n**3 / found["gemm"].median / 1e9}
