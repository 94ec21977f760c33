"""The emulator reports misuse of clusters: a kernel with one fault at a time, on several orders of the threads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import host_build
import pytest
import torch
from fault_cases import SEEDS, assert_reported, faults_of, library_of

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
SOURCE = Path(__file__).with_name("cluster_faults.cu")
FAULTS = faults_of(SOURCE)
NOT_STARTED = r"st.shared::cluster to the block of rank \d, of which nothing says that it has started at cluster"

# What the report says, in the build with hooks, at every seed.
REPORTS = {
    "NoFirstBarrier": NOT_STARTED,
    "NoFirstWait": NOT_STARTED,
    "BarrierOfBlock": r"race: read of shared memory\+\d+, unordered with thread \d+ of rank \d|read of uninitialised",
    "NoWait": r"race: read of shared memory\+\d+, unordered with thread \d+ of rank \d|read of uninitialised",
    "ArriveRelaxed": r"race: read of shared memory\+\d+, unordered with thread \d+ of rank \d",
    "Reuse": r"race: (read of|write to) shared memory\+\d+, unordered with thread \d+ of rank \d",
    "SameWord": r"race: write to shared memory\+\d+, unordered with thread \d+ of rank \d \[warp \d lane \d+\] at clu",
    "LateStore": r"the block of rank 0, which has exited|the block of rank 0 exits, unordered with an access to its",
    "NoSuchRank": r"mapa: there is no rank 4 in a cluster of 4 blocks",
    "SharedOverflow": r"out of bounds: st.shared::cluster of 4 bytes at shared memory\+\d+, an array of 2048 bytes at",
    "SharedMisaligned": r"st.shared::cluster: 0x\w+ is no multiple of 4 at cluster",
    "NoAddress": r"st.shared::cluster: 0x\w+ is no address at cluster",
    "Stuck": r"deadlock: .*; warp 0 of rank 1 lanes ffffffff: __syncthreads; .*the barrier of the cluster lacks 32 thr",
    "HalfWarpArrives": r"divergent warp|barrier.cluster.arrive without a wait for the phase before|deadlock",
    "ArriveTwice": r"barrier.cluster.arrive without a wait for the phase before",
    "WaitFirst": r"barrier.cluster.wait without barrier.cluster.arrive",
    "GlobalUnordered": r"race: (read of|write to) given\+\d+, unordered with thread \d+ of rank \d",
    "GlobalElsewhere": r"race: (read of|write to) given\+\d+, which block \d (wrote|read)",
    "GridNoMultiple": r"invalid launch: grid \(9,1,1\) in clusters of 4 blocks on sm_90",
    "TooManyBlocks": r"invalid launch: grid \(16,1,1\) in clusters of 16 blocks on sm_90",
    "NoClusters": r"invalid launch: grid \(8,1,1\) in clusters of 4 blocks on sm_89",
    "TooManyThreads": r"invalid launch: .* block \(2048,1,1\)",
}
RIGHT = ("None", "EarlyExit")
# What the build without hooks sees too: it watches the scheduler, the barrier and addresses, and no order.
WITHOUT_HOOKS = (
    "NoFirstBarrier",
    "NoSuchRank",
    "SharedOverflow",
    "SharedMisaligned",
    "NoAddress",
    "Stuck",
    "HalfWarpArrives",
    "ArriveTwice",
    "WaitFirst",
    "GridNoMultiple",
    "TooManyBlocks",
    "NoClusters",
)


def run(variant: str, fault: str, seed: int, cluster: int = 4) -> tuple[str, bool]:
    """(report, whether the results are right)"""
    library, emulator = library_of(variant, SOURCE, "run_exchange")
    emulator.configure(seed)
    emulator.set_device(89 if fault == "NoClusters" else 90)
    x = torch.randint(-99, 100, (8, 64)).float()
    given, out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    emulator.watch({"x": x, "given": given, "out": out}, frozenset({"given", "out"}))
    report = library.run_exchange(out.data_ptr(), x.data_ptr(), given.data_ptr(), cluster, FAULTS.index(fault))
    of_clusters = x.view(8 // cluster, cluster, 64)
    expected = of_clusters.sum(1, keepdim=True) + of_clusters.roll(-1, 1)
    return report.decode(), torch.equal(out, expected.reshape(8, 64))


def test_every_fault_is_listed() -> None:
    assert set(FAULTS) == {*REPORTS, *RIGHT}


@pytest.mark.parametrize("variant", ["plain", "race"])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_a_right_kernel_is_right_and_reports_nothing(variant: str, cluster: int) -> None:
    for seed in SEEDS:
        assert run(variant, "None", seed, cluster) == ("", True)
        if cluster > 1:
            assert run(variant, "EarlyExit", seed, cluster)[0] == ""


@pytest.mark.parametrize("fault", REPORTS)
def test_each_fault_is_reported_at_every_seed(fault: str) -> None:
    assert_reported(lambda seed: run("race", fault, seed)[0], rf"^kernel exchange, .*({REPORTS[fault]})")


@pytest.mark.parametrize("fault", WITHOUT_HOOKS)
def test_faults_that_show_without_hooks(fault: str) -> None:
    assert_reported(lambda seed: run("plain", fault, seed)[0], REPORTS[fault])


def test_a_report_names_the_block_and_the_line() -> None:
    report, _ = run("race", "SharedOverflow", 1)
    lines = SOURCE.read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "cluster_store(has(p, kNoAddress)" in text)
    assert re.search(
        rf"block \([15],0,0\) thread \(\d+,0,0\) \[warp [01] lane \d+\].*, cluster_faults.cu:{line}$", report
    )


def test_seeds_change_which_block_of_a_cluster_is_first() -> None:
    """A store into a block that may have exited: some seeds have it exit before, and some after."""
    reports = [run("race", "LateStore", seed)[0] for seed in range(1, 30)]
    assert {"has exited" in r for r in reports} == {True, False}


SANITIZED = """
import torch, test_cluster_faults as tests
for cluster in (2, 8):
    assert tests.run("asan", "None", 2, cluster) == ("", True)
assert "out of bounds" in tests.run("asan", "SharedOverflow", 2)[0]
"""


@pytest.mark.slow
def test_clusters_run_under_the_sanitizers() -> None:
    environment = host_build.sanitizer_environment()
    environment["PYTHONPATH"] = ":".join([str(host_build.HERE), *sys.path])
    done = subprocess.run([sys.executable, "-c", SANITIZED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
