"""The emulator reports what it says it reports: a kernel with one fault at a time, on several orders of the threads."""

from __future__ import annotations

import re
from pathlib import Path

import host_build
import pytest
import torch
from fault_cases import SEEDS, assert_reported, faults_of, library_of

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
SOURCE = Path(__file__).with_name("faults.cu")
FAULTS = faults_of(SOURCE)

# What the report says, in the build with hooks, at every seed.
REPORTS = {
    "NoBarrier": r"race: read of shared memory\+\d+, unordered with thread|read of uninitialised shared memory",
    "SharedOverflow": r"out of bounds: write of 4 bytes between the arrays of shared memory",
    "Uninitialised": r"read of uninitialised shared memory\+\d+",
    "BarrierInBranch": r"deadlock: .*; warp 0 lanes 0000ffff: __syncwarp; warp 0 lanes ffff0000: __syncthreads",
    "HalfWarpShuffle": r"divergent warp|deadlock|lane exited while its warp waits for it in __shfl_xor_sync",
    "ShuffleFromOutside": r"shuffle: lane \d+ reads lane 20, which is not in mask 0000ffff",
    "NotInOwnMask": r"__shfl_sync: lane \d+ is not in its own mask 0000ffff",
    "TwoShuffles": r"divergent warp: lane \d+ is at __shfl\w*_sync",
    "SameWord": r"race: write to out\+0, unordered with thread",
    "SameWordOfBlocks": r"race: write to out\+\d+, which block \d wrote",
    "ReadOfOtherBlock": r"race: (read of|write to) x\+\d+, which block \d (wrote|read)|race: .* x\+\d+, unordered",
    "NoWarpBarrier": r"race: read of shared memory\+\d+, unordered with thread|read of uninitialised shared memory",
    "ReuseWithoutBarrier": r"race: (write to|read of) shared memory\+\d+, unordered with thread",
    "GlobalWriteOverflow": r"out of bounds: write of 4 bytes at out\+800, a buffer of 800 bytes",
    "GlobalReadOverflow": r"out of bounds: read of 4 bytes at x\+800, a buffer of 800 bytes",
    "GlobalReadUnderflow": r"out of bounds: read of 4 bytes at x-4, a buffer of 800 bytes",
    "WriteToInput": r"write to the read-only buffer x\+0",
    "PlainAndAtomic": r"race: write to sum\+0",
    "MisalignedVector": r"misaligned access of 16 bytes at (x\+20|address 0x\w+), \d+ modulo 16 at .*faults\.cu",
    "MisalignedShared": r"misaligned access of 16 bytes at shared memory\+20, \d+ modulo 16 at .*faults\.cu",
    "MisalignedWord": r"misaligned access of 4 bytes at out\+22, 2 modulo 4 at .*faults\.cu",
    "MisalignedAtomic": r"misaligned access of 4 bytes at (out\+22|address 0x\w+), 2 modulo 4 at \w",
    "TooManyThreads": r"invalid launch: .* block \(2048,1,1\)",
}
RIGHT = ("None", "EarlyExit")
# What the build without hooks sees too: it watches the scheduler and the addresses of vectors, and no other access.
WITHOUT_HOOKS = (
    "BarrierInBranch",
    "HalfWarpShuffle",
    "ShuffleFromOutside",
    "NotInOwnMask",
    "TwoShuffles",
    "TooManyThreads",
    "MisalignedVector",
    "MisalignedShared",
    "MisalignedAtomic",
)


def run(variant: str, fault: str, seed: int, *, poison: bool = True, race: bool = True):
    """(report, whether the results are right)"""
    library, emulator = library_of(variant, SOURCE, "run_faulty")
    emulator.configure(seed, poison, race)
    x, total = torch.randn(200), torch.zeros(1)
    guarded = torch.full((201,), torch.nan)  # a word behind the end that a build without hooks may write
    out = guarded[:200]
    writes = {"sum", "out", *(["x"] if fault == "ReadOfOtherBlock" else [])}
    padded = torch.cat([torch.zeros(1), x, torch.zeros(1)])
    x = padded[1:201]
    emulator.watch({"x": x, "sum": total, "out": out}, frozenset(writes))
    report = library.run_faulty(x.data_ptr(), total.data_ptr(), out.data_ptr(), 200, FAULTS.index(fault)).decode()
    blocks = torch.cat([x, torch.zeros(56)]).view(2, 128)
    expected = (blocks + blocks.roll(-1, 1)).flatten()[:200]
    return report, torch.allclose(total, x.sum(), atol=1e-4) and torch.equal(out, expected)


def test_every_fault_is_listed() -> None:
    assert set(FAULTS) == {*REPORTS, *RIGHT}


@pytest.mark.parametrize("variant", ["plain", "race"])
def test_a_right_kernel_is_right_and_reports_nothing(variant: str) -> None:
    for seed in SEEDS:
        assert run(variant, "None", seed) == ("", True)
        report, _ = run(variant, "EarlyExit", seed)
        assert report == ""


@pytest.mark.parametrize("fault", REPORTS)
def test_each_fault_is_reported_at_every_seed(fault: str) -> None:
    assert_reported(lambda seed: run("race", fault, seed)[0], rf"^kernel faulty, .*({REPORTS[fault]})")


@pytest.mark.parametrize("fault", WITHOUT_HOOKS)
def test_faults_of_scheduling_and_alignment_need_no_hooks(fault: str) -> None:
    assert_reported(lambda seed: run("plain", fault, seed)[0], REPORTS[fault])


def test_a_report_names_thread_and_line() -> None:
    report, _ = run("race", "WriteToInput", 1)
    line = 1 + SOURCE.read_text().splitlines().index(
        "  if (fault == kWriteToInput && t == 0 && blockIdx.x == 0) p.x[0] = s;"
    )
    assert "block (0,0,0) thread (0,0,0) [warp 0 lane 0]" in report
    assert f"faults.cu:{line}" in report


def test_poison_makes_a_missing_barrier_a_wrong_result() -> None:
    """Shared memory that no thread has written yet holds NaN, so that too early a read shows without hooks as well."""
    right = [run("plain", "NoBarrier", seed)[1] for seed in SEEDS]
    assert not all(right)
    assert all(run("plain", "None", seed)[1] for seed in SEEDS)


def test_race_checks_can_be_switched_off() -> None:
    report, _ = run("race", "SameWord", 1, race=False)
    assert report == ""
    report, _ = run("race", "WriteToInput", 1, race=False)
    assert "read-only" in report  # extents are held to all the same


def test_every_vector_is_asked_for_its_alignment() -> None:
    """A pointer to wider elements comes from `aligned_at` alone; registers may be grouped, as the same elements."""
    kernels = [p for p in (host_build.ROOT / "csrc").glob("*/*.cu*") if p.parent.name != "arch"]
    cast = re.compile(r"reinterpret_cast<(?!uintptr_t>|Scores>|uint32_t \(&\)\[4\]>).*")
    casts = {p.name: cast.findall(p.read_text()) for p in kernels}
    assert len(kernels) > 20 and not any(casts.values()), casts


def test_seeds_change_the_order_of_blocks() -> None:
    """Of two blocks that store to the same words the later one is seen."""
    last = {}
    for seed in range(1, 30):
        library, emulator = library_of("plain", SOURCE, "run_faulty")
        emulator.configure(seed)
        x, total, out = torch.arange(200.0), torch.zeros(1), torch.zeros(200)
        library.run_faulty(x.data_ptr(), total.data_ptr(), out.data_ptr(), 200, FAULTS.index("SameWordOfBlocks"))
        last[seed] = float(out[0])
    assert set(last.values()) == {0.0, 128.0}, "both orders of the two blocks"
