"""`make mutate`: every mutation of the list in a copy of the sources, one after another; fails where tests stay green.

    python tests/mutations/run.py [--first-use] [part of a name ...]

The sources are copied once for each worker, and never changed where they are. First every selection of tests has to
pass on an untouched copy: a test that is red anyway proves nothing. With --first-use no test is run, but the check of
kernels at first use, on each fault of a Triton kernel.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import first_use
from mutation import Mutation
from mutations import MUTATIONS
from of_triton import TRITON

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 900
"""Seconds for one selection: a fault may also make a kernel run for ever, which counts as noticed."""
COMPILER_FAILED = r"RuntimeError: \S*(g\+\+|nvcc) |^the emulator cannot be built$"
"""What buildsystem/compiling.py raises inside of a test, and what tests/conftest.py says where a build fails before."""
GREEN, RED = 0, 1
"""pytest's exit statuses of tests that passed and of tests that failed; any other one is no answer."""


def copy_sources(to: Path) -> None:
    """Every file that git knows or would add, symlinks as they are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():  # else deleted, and not yet committed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int | None, str]:
    """pytest's status, None where it took too long, and the last line that says why."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = "1"
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None, f"took more than {LIMIT} s"
    if re.search(COMPILER_FAILED, done.stdout, re.M):  # in a fixture or inside of a test
        return done.returncode, "ERROR the sources do not compile"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    lines.sort(key=lambda line: line.startswith("FAILED"))  # last, and returned, if there is one
    return done.returncode, (lines or done.stdout.splitlines() or [done.stderr.strip()])[-1]


def is_noticed(status: int | None, why: str) -> bool:
    """Whether a test failed. Where there are errors alone, or a compiler failed, the fault proves nothing."""
    return status is None or (status == RED and why.startswith("FAILED"))


def mutated(tree: Path, mutation: Mutation) -> tuple[int | None, str]:
    """What the tests say of a tree with this fault; the tree is as before afterwards."""
    with mutation.made_in(tree):
        return run_tests(tree, mutation.tests)


def first_use_notices(tree: Path, chosen: list[Mutation]) -> list[str]:
    """What is not as the list of faults says that the check at first use does not notice; prints each."""
    wrong = []
    seen, why = first_use.check(tree, sorted({op for m in chosen for op in first_use.ops_of(tree, m.file)}))
    if seen:
        return [f"noticed without a fault: {why}"]
    for mutation in chosen:
        began = time.monotonic()
        seen, why = first_use.noticed(tree, mutation)
        word = "noticed" if seen else "unnoticed"
        print(f"{time.monotonic() - began:6.0f} s  {word}  {mutation.name}\n{'':10}{why}", flush=True)
        if seen == (mutation.name in first_use.UNNOTICED):
            wrong.append(f"{word}, against the list: {mutation.name}\n    -> {mutation.new.strip()} ({why})")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="only mutations whose name contains one of these")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--first-use", action="store_true", help="whether the check at first use notices them")
    given = parser.parse_args()
    listed = TRITON if given.first_use else MUTATIONS
    chosen = [m for m in listed if not given.parts or any(part in m.name for part in given.parts)]
    if not chosen:
        parser.error(f"no mutation has {' or '.join(given.parts)} in its name")
    wrong = []
    if given.first_use:
        with tempfile.TemporaryDirectory() as folder:
            copy_sources(Path(folder))
            wrong = first_use_notices(Path(folder), chosen)
        print("\n".join([f"{len(chosen)} mutations, {len(wrong)} of them wrong", *wrong]))
        return bool(wrong)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.workers) as pool:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(given.workers):
            copy_sources(Path(folder) / str(number))
            trees.put(Path(folder) / str(number))

        def borrow(work, *arguments):
            tree, start = trees.get(), time.monotonic()
            try:
                return (*work(tree, *arguments), time.monotonic() - start)
            finally:
                trees.put(tree)

        selections = list(dict.fromkeys(m.tests for m in chosen))
        for tests, (status, why, seconds) in zip(selections, pool.map(lambda t: borrow(run_tests, t), selections)):
            print(f"{seconds:6.0f} s  untouched  {' '.join(tests)}", flush=True)
            if status != GREEN:
                wrong.append(f"not green without a fault: {' '.join(tests)}: {why}")
        if not wrong:
            for mutation, (status, why, seconds) in zip(chosen, pool.map(lambda m: borrow(mutated, m), chosen)):
                noticed = is_noticed(status, why)
                print(
                    f"{seconds:6.0f} s  {'noticed' if noticed else 'MISSED'}  {mutation.name}\n{'':10}{why}", flush=True
                )
                if not noticed:
                    wrong.append(f"no test noticed: {mutation.name}\n    -> {mutation.new.strip()} ({why})")
    print("\n".join([f"{len(chosen)} mutations, {len(wrong)} of them wrong", *wrong]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
