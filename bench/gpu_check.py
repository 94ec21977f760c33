"""The one command for a machine with a GPU: the tests on the device, then a short benchmark.

    python -m bench.gpu_check [--part tests|bench|all] [--out DIR] [--minutes 8.5]

Each part stays under its time budget and can be called alone.  It needs Python, torch, triton, transformers and pytest,
no network, and no installation (run it from the checkout); where nvcc is, the kernels in CUDA C++ are compiled first,
for this GPU, in place.  Into DIR go a log a part (versions, clocks, commit, what
failed, what did not fit) and CSV files: tests.csv, kernels.csv, model.csv, serving.csv, host.csv, compiler_report.csv.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

ORDER = ("tests/gpu", "tests/ops", "tests/functional", "tests/nn", "tests/models", "tests/distributed", "tests")
"""Folders by value: what only a GPU can show first."""

ELSEWHERE = (
    "tests/ahead_of_time",
    "tests/emulator",
    "tests/cuda",
    "tests/mutations",
    "tests/scripts",
    "tests/cli",
    "tests/bench",
)
"""Tests that a GPU adds nothing to, or that need packages this command does without."""

TEST_SECONDS = 120


class Log:
    """Prints, and keeps a copy in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.monotonic()
        path.write_text("", encoding="utf-8")

    def __call__(self, text: str) -> None:
        line = f"[{time.monotonic() - self.begun:5.0f} s] {text}"
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def environment(log: Log, rehearsal: bool) -> None:
    """Logs what identifies machine and code, and the machine's own rates in this run."""
    import torch

    from .environment import describe, rates

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in describe(device).items():
        log(f"{name}: {value}")
    for name, rate in rates(device, tiny=rehearsal).items():
        log(f"{name}: {rate:.4g}" + (" (rehearsal: no figure)" if rehearsal else ""))


def build_extension(log: Log) -> int:
    """Compiles fasttx._C for this GPU, if nvcc is here; returns 1 where that fails."""
    import torch

    sys.path.insert(0, str(ROOT / "buildsystem"))
    import cuda_build

    lack = cuda_build.lacks()
    if lack is not None:
        log(f"fasttx._C: not built, and the rows of the backend cuda are skipped: {lack}")
        return 0
    major, minor = torch.cuda.get_device_capability()
    arch = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    environ = os.environ | {"FASTTX_CUDA": "1", "FASTTX_CUDA_ARCHS": arch}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, errors="replace")
    log(
        f"fasttx._C for sm_{arch}: "
        + ("built" if not done.returncode else "failed")
        + f", {time.monotonic() - begun:.0f} s"
    )
    for line in (done.stdout + done.stderr).splitlines()[-40:] if done.returncode else ():
        log(f"    {line}")
    return int(done.returncode != 0)


# --------------------------------------------------------------------------------------------------------- tests


def files_to_test() -> list[Path]:
    """Every test file that is run here, the most valuable first."""
    found: list[Path] = []
    for folder in ORDER:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            relative = path.relative_to(ROOT).as_posix()
            if path not in found and not relative.startswith(ELSEWHERE):
                found.append(path)
    return found


def _run_file(path: Path, out: Path, deadline: float, rehearsal: bool, keyword: str) -> tuple[Path, str, str]:
    """One test file in a process of its own, so that a broken CUDA context ends with it: (file, verdict, output)."""
    left = deadline - time.time()
    if left < 5:
        return path, "did not fit", ""
    results = out / f"{path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}.jsonl"
    results.unlink(missing_ok=True)
    environ = os.environ | {
        "FASTTX_TEST_LOG": str(results),
        "FASTTX_TEST_SECONDS": str(TEST_SECONDS),
        "FASTTX_TEST_DEADLINE": str(deadline - 5),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    if rehearsal:
        environ["FASTTX_REHEARSAL"] = "1"
    command = [sys.executable, "-m", "pytest", str(path), "-p", "tests.support.budget", "-p", "no:cacheprovider"]
    command += ["-p", "no:timeout", "-p", "no:xdist", "-q", "--tb=short", "-W", "ignore", "-o", "timeout="]
    command += ["-k", keyword] if keyword else []
    # A session of its own, to end with everything that the tests started: a child that lives on holds the output open.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=left)
            verdict = {0: "passed", 1: "failed", 5: "no tests"}.get(
                process.returncode, f"pytest exit {process.returncode}"
            )
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, verdict = process.communicate()[0], "killed at the deadline"
    return path, verdict, output


def _write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["test", "outcome", "seconds", "detail"])
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: str(row["test"])))


def run_tests(
    out: Path, log: Log, minutes: float, jobs: int, rehearsal: bool, only: str = "", keyword: str = ""
) -> int:
    """Runs the test files, `jobs` at a time; writes tests.csv. Returns how many results are not good."""
    deadline = time.time() + minutes * 60
    files = [path for path in files_to_test() if only in path.relative_to(ROOT).as_posix()]
    log(f"tests: {len(files)} files, {jobs} at a time, {minutes:.1f} minutes; not run here: {', '.join(ELSEWHERE)}")
    rows: list[dict[str, object]] = []
    _write_rows(out / "tests.csv", rows)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run_file, path, out, deadline, rehearsal, keyword) for path in files]
        for future in concurrent.futures.as_completed(futures):
            path, verdict, output = future.result()
            name = path.relative_to(ROOT).as_posix()
            results = out / f"{path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}.jsonl"
            lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
            results.unlink(missing_ok=True)
            new = [json.loads(line) for line in lines]
            rows += new
            counts = Counter(str(row["outcome"]) for row in new)
            log(f"{name}: {verdict}; " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())))
            if verdict not in ("passed", "failed", "no tests"):
                rows.append({"test": name, "outcome": "file", "seconds": 0.0, "detail": verdict})
            if verdict not in ("passed", "no tests", "did not fit"):
                for line in output.splitlines()[-40:]:
                    log(f"    {line}")
            _write_rows(out / "tests.csv", rows)  # after each file: a run that is cut off leaves what it had
    counts = Counter(str(row["outcome"]) for row in rows)
    log("tests: " + (", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "none ran"))
    short = sum("time budget" in str(row["detail"]) for row in rows)
    if short or any(row["detail"] == "did not fit" for row in rows):
        log(f"tests: the time was too short for {short} tests and the files marked 'did not fit'")
    return sum(n for outcome, n in counts.items() if outcome not in ("passed", "skipped"))


# --------------------------------------------------------------------------------------------------------- bench


def run_bench(out: Path, log: Log, minutes: float, rehearsal: bool, only: str = "") -> int:
    """Kernels, models, serving, host cost and what the compiler made; returns how many of our rows are not ok."""
    os.environ["FASTTX_FIRST_USE_CHECK"] = "0"  # the part "tests" checks more, and its time is short
    if rehearsal:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which any of the next lines may do
    import torch

    from fasttx.ops.cuda import launch as cuda

    from . import arms, compiler_report, host, kernels, model, serving

    if rehearsal:
        kernels.rehearse()
    device = torch.device("cpu" if rehearsal else "cuda")
    begun = time.monotonic()
    beside = ("cuda",) if cuda.built_for() is not None and not rehearsal else ()
    rows, left = kernels.run(
        device,
        out / "kernels.csv",
        only=only,
        rehearsal=rehearsal,
        deadline=begun + 0.5 * minutes * 60,
        say=log,
        beside=beside,
    )
    if left:
        log(f"bench: no time for the workloads {', '.join(left)}")
    bad = sum(map(kernels.failed, rows))
    soon = [arm for arm in arms.ARMS if arm.mode != "max-autotune"]  # minutes of compilation a model
    models = model.run(
        device, out / "model.csv", arms=soon, rehearsal=rehearsal, deadline=begun + 0.75 * minutes * 60, say=log
    )
    served = serving.run(
        device, out / "serving.csv", rehearsal=rehearsal, deadline=begun + 0.85 * minutes * 60, say=log
    )
    bad += sum(map(model.failed, models + served))
    late = sum(row["status"] == "not run: time budget" for row in models + served)
    if late:
        log(f"bench: no time for {late} arms of models and serving")
    with (out / "compiled.csv").open("w", newline="", encoding="utf-8") as file:
        found = compiler_report.compiled_kernels()
        writer = csv.writer(file)
        writer.writerow(["kernel", "registers", "spills", "shared_bytes", "num_warps", "wgmma", "constants"])
        for k in found:
            writer.writerow([k.kernel, k.registers, k.spills, k.shared_bytes, k.num_warps, k.wgmma, k.constants])
    log(f"bench: {len(found)} compiled variants, {sum(k.spills > 0 for k in found)} of them spill")
    if time.monotonic() < begun + 0.9 * minutes * 60:
        host.run(device, out / "host.csv", rehearsal=rehearsal, say=log)
    else:
        log("bench: no time for the host costs")
    return bad


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("tests", "bench", "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("gpu-check-out"))
    parser.add_argument("--minutes", type=float, default=8.5, help="time budget of each part")
    parser.add_argument(
        "--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)), help="test files at once"
    )
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny sizes in Triton's interpreter: no figures")
    parser.add_argument("--only", default="", help="test files and workloads whose name contains this")
    parser.add_argument("--keyword", default="", help="pytest's -k")
    options = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available() and not options.cpu_rehearsal:
        print(
            f"gpu_check: torch {torch.__version__} sees no NVIDIA GPU on this machine, and there is nothing to check "
            "without one (--cpu-rehearsal runs every step at tiny size)",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    budget = max(0.1, options.minutes - 0.5)  # the rates that come first, and the end of the run
    rehearsal, total = options.cpu_rehearsal, 0
    for part in ("tests", "bench") if options.part == "all" else (options.part,):
        log = Log(options.out / f"{part}.log")
        try:
            environment(log, rehearsal)
            bad = 0 if rehearsal else build_extension(log)
            if part == "tests":
                bad += run_tests(options.out, log, budget, options.jobs, rehearsal, options.only, options.keyword)
            else:
                bad += run_bench(options.out, log, budget, rehearsal, options.only)
        except Exception:  # the log is what comes back from that machine, and the other part is worth its time
            log(traceback.format_exc().rstrip())
            bad = 1
        log(f"{part}: done, " + (f"{bad} problem{'s' * (bad > 1)}" if bad else "no problems"))
        total += bad
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
