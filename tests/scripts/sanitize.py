"""`make sanitize`: the tests of the ops and of csrc/arch under each tool of compute-sanitizer, on an NVIDIA GPU.

    python tests/scripts/sanitize.py [--tool memcheck ...] [--out DIR] [--minutes 8] [--keyword softmax]

memcheck: accesses outside of an allocation; racecheck: races in shared memory; synccheck: barriers that not all threads
reach; initcheck: reads of memory that nobody wrote. PyTorch's allocator is told to pass every request on, so that an
allocation ends where its tensor does. A log a tool goes into DIR. Status 0: all tools are content; 1: a tool found
something, or a test failed; 2: there is no GPU, no compute-sanitizer, or it cannot work on this machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND_ERRORS = 86
"""Exit status that compute-sanitizer is told to give; pytest has none as high."""
TESTS = ("tests/test_ops.py", "tests/ops", "tests/gpu/test_instructions.py", "-m", "not slow")
HINT = (
    "compute-sanitizer is in no PATH, CUDA_HOME or /usr/local/cuda: it comes with the CUDA toolkit, and from PyPI as "
    "nvidia-cuda-sanitizer-api"
)


class Verdict(NamedTuple):
    """What came of one tool: 0 clean, 1 errors or failed tests, 2 it could not work."""

    status: int
    text: str


def find() -> str | None:
    """The program, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    folders += [f"{home}/compute-sanitizer" for home in homes if home]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def judge(status: int | None, output: str) -> Verdict:
    """From the exit status, None where the time was up, and the output of one tool.

    The tool ends with an error summary wherever it has worked; without one it never got hold of the GPU.
    """
    if status is None:
        return Verdict(1, "was stopped at its time limit")
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    if not summaries:
        lines = [line for line in output.splitlines() if "=====" in line] or output.splitlines() or ["no output"]
        return Verdict(2, f"does not work on this machine: {lines[-1].strip()}")
    if status == 0:
        return Verdict(0, f"clean ({summaries[-1]})")
    if status == FOUND_ERRORS:
        return Verdict(1, f"found errors ({summaries[-1]})")
    return Verdict(1, f"tests failed, pytest's status is {status} ({summaries[-1]})")


def run(program: str, tool: str, log: Path, seconds: float, keyword: str, tests: tuple[str, ...] = TESTS) -> Verdict:
    """The tests under one tool, in one process; its output goes into `log`."""
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--target-processes", "all"]
    command += [
        sys.executable,
        "-m",
        "pytest",
        *tests,
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
    ]
    command += ["-o", "timeout=0", *(["-k", keyword] if keyword else [])]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w+", encoding="utf-8", errors="replace") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        file.seek(0)
        return judge(status, file.read())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--out", type=Path, default=Path("sanitize-out"))
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of each tool")
    parser.add_argument("--keyword", default="", help="pytest's -k")
    given = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        print(f"sanitize: torch {torch.__version__} sees no NVIDIA GPU on this machine", file=sys.stderr)
        return 2
    program = find()
    if program is None:
        print(f"sanitize: {HINT}", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    verdicts = []
    for tool in given.tool:
        verdicts.append(run(program, tool, given.out / f"{tool}.log", given.minutes * 60, given.keyword))
        print(f"{tool}: {verdicts[-1].text}; {given.out / f'{tool}.log'}", flush=True)
    return 1 if any(v.status == 1 for v in verdicts) else max(v.status for v in verdicts)


if __name__ == "__main__":
    sys.exit(main())
