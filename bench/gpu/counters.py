"""Why: three launches under Nsight Compute, which reads the hardware's counters: pipes, issue, DRAM, stalls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

from ..workloads import WORKLOADS
from .item import Context, Item, Line

TARGETS = {
    "attention forward": (
        "attention-bert-base-s512",
        "attention_fwd",
        "11.5 instructions an element; 2 blocks overlap",
    ),
    "attention backward": ("attention-bert-base-s512", "attention_bwd_dkdv", "tensor time above issue; 4 barriers"),
    "layer norm backward": ("dropout_add_layer_norm-bert-base-16384x768", "bwd", "stalls at barriers and on loads"),
}
"""By name: the workload, a part of the kernel's name, and what the counters ought to show."""
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")
KEPT = ("Duration", "Throughput", "Registers", "Occupancy", "Stall", "Issued", "Eligible", "L2 Hit", "Warp Cycles")
SECONDS = 40


def _ncu() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("ncu", path=os.pathsep.join(folders))


def _command(program: str | None, name: str, rehearsal: bool) -> list[str]:
    workload, kernel, _ = TARGETS[name]
    target = [sys.executable, "-m", "bench.gpu.counters", workload, "tiny" if rehearsal else "full"]
    if program is None:
        return target
    sections = [argument for section in SECTIONS for argument in ("--section", section)]
    return [
        program,
        "--clock-control",
        "none",
        "--kernel-name",
        f"regex:{kernel}",
        "--launch-count",
        "1",
        *sections,
        *target,
    ]


def counted(name: str, context: Context) -> Iterator[Line]:
    program = None if context.rehearsal else _ncu()
    if program is None and not context.rehearsal:
        yield {"text": "not run: ncu is in no PATH, CUDA_HOME or /usr/local/cuda"}
        return
    command = _command(program, name, context.rehearsal)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        yield {"text": f"exit status {done.returncode}: {lines[-1][:300]}", "ok": False}
        return
    counters = [" ".join(line.split()) for line in done.stdout.splitlines() if any(word in line for word in KEPT)]
    text = "; ".join(counters[:6]) or "a rehearsal counts nothing"
    yield {
        "text": text,
        "counters": counters,
        "report": done.stdout[:30_000],
        "key": True,
        "expected": TARGETS[name][2],
    }


def items(context: Context) -> list[Item]:
    names = context.some(list(TARGETS), 1)
    return [Item(name, partial(counted, name)) for name in names]


def main(arguments: list[str]) -> int:
    """What runs under the profiler: one workload, forward and backward, once."""
    name, size = arguments
    if size == "tiny":
        from fasttx.triton_interpreter import repair

        repair()
    from .launch import launch

    workload = next(w for w in WORKLOADS if w.name == name)
    device = torch.device("cpu" if size == "tiny" else "cuda")
    launch(workload, Context(device, rehearsal=size == "tiny"), (size,))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
