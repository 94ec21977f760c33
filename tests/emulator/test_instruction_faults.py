"""The emulator reports misuse of asynchronous and tensor-core instructions: products with one fault at a time."""

from __future__ import annotations

import re
import subprocess
import sys

import host_build
import instruction_cases
import instruction_library
import pytest
import torch
from fault_cases import SEEDS, assert_reported, faults_of
from instruction_library import padded, small_integers

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
RACE_OR_FLIGHT = r"race: (read of|write to) .*shared memory\+\d+|while an asynchronous copy into it is in flight"

# What the report says, in the build with hooks, at every seed.
REPORTS = {
    "gemm_sm80": {
        "NoWait": r"read of shared memory\+\d+ while an asynchronous copy into it is in flight at ldmatrix",
        "NoCommit": r"read of shared memory\+\d+ while an asynchronous copy into it is in flight at ldmatrix",
        "NoBarrierAfterWait": rf"read of uninitialised shared memory|{RACE_OR_FLIGHT}",
        "NoBarrierBeforeReuse": RACE_OR_FLIGHT,
        "NoLoad": r"read of uninitialised shared memory\+\d+ at ldmatrix",
        "SharedOutOfBounds": r"out of bounds: ldmatrix of 16 bytes at shared memory\+\d+, an array of 32768 bytes",
        "SharedMisaligned": r"ldmatrix: address 0x[0-9a-f]+ of shared memory is no multiple of 16",
        "GlobalRows": r"out of bounds: read of \d+ bytes at a\+\d+, a buffer of \d+ bytes at cp_async",
        "GlobalColumns": r"out of bounds: read of 16 bytes at \w+[+-]\d+, a buffer of \d+ bytes at cp_async",
        "StoreRows": r"out of bounds: write of 4 bytes at out\+\d+, a buffer of 18480 bytes",
        "BarrierInOneLane": r"deadlock: .*warp 0 lanes fffffff7: ldmatrix.x4; warp 0 lanes 00000008: __syncthreads",
        "MmaInHalfWarp": r"divergent warp: lane \d+ is at (mma.m16n8k16.f16|ldmatrix.x4)",
    },
    "gemm_sm90": {
        "NoFullWait": r"race: read of dynamic shared memory\+\d+, unordered with a TMA load|in flight at wgmma",
        "NoFullWaitInAWarp": r"race: read of dynamic shared memory\+\d+, unordered with a TMA load at wgmma",
        "NoEmptyWait": rf"mbarrier.arrive: more arrivals than the 1 of the phase|{RACE_OR_FLIGHT}",
        "WrongParity": r"deadlock: .*lacks 1 arrivals and 0 bytes",
        "EarlyRelease": r"race: write to dynamic shared memory\+\d+, unordered with a wgmma of warp 0",
        "EarlyReleaseByAWarp": r"race: write to dynamic shared memory\+\d+, unordered with a wgmma of warp 0",
        "NoReleaseByAWarp": r"deadlock: .*in a phase of parity 0, lacks 1 arrivals and 0 bytes",
        "NoInitBarrier": r"there is no mbarrier at 0x[0-9a-f]+|race: read of dynamic",
        "NoInitFence": r"TMA load: no fence between the init of its mbarrier, by thread 0, and this copy at tma",
        "TooFewBytes": r"deadlock: .*lacks 0 arrivals and -16 bytes",
        "TooManyBytes": r"deadlock: .*lacks 0 arrivals and 16 bytes",
        "NoProductFence": r"wgmma without wgmma.fence since the accumulators were last waited for at wgmma",
        "NoProductCommit": r"race: write to dynamic .* unordered with a wgmma|exits with wgmma that it has not waited",
        "NoProductWait": r"race: write to dynamic .* unordered with a wgmma|exits with wgmma that it has not waited",
        "ReadBeforeWait": r"read of an accumulator that a wgmma in flight holds at gemm_sm90",
        "WriteBeforeWait": r"write of an accumulator that a wgmma in flight holds at gemm_sm90",
        "ProductInThreeWarps": r"deadlock: .*warp 0 lanes ffffffff: wgmma.mma_async; warp 1",
        "SharedOutOfBounds": r"out of bounds: TMA load of 8192 bytes at dynamic shared memory\+\d+, an array of \d+",
        "SharedMisaligned": r"TMA load: address 0x\w+ of shared memory is no multiple of 128 at tma",
        "StoreColumns": r"out of bounds: write of 4 bytes at out\+\d+|race: write to out\+\d+, which block \d wrote",
        "UnsolicitedBox": r"block \(\d,\d,0\) ends with TMA loads that nobody has waited for",
        "UnreadBox": r"block \(\d,\d,0\) ends with TMA loads that nobody has waited for",
    },
    "instructions_sm90": {
        "OneArrivalTooMany": r"race: (read of|write to) shared memory|read of uninit|more arrivals than the 32",
        "NoMbarrierWait": r"race: (read of|write to) shared memory|read of uninitialised shared memory",
        "InitTwice": r"mbarrier.init: there is an mbarrier at 0x[0-9a-f]+ already at mbarrier",
        "PhaseBefore": r"race: (read of|write to) shared memory\+0, unordered|read of uninitialised shared memory\+0",
        "InitBehindShuffle": r"race: read of shared memory\+\d, unordered with thread 0 .* at mbarrier",
        "NoProxyFence": r"wgmma reads dynamic .*written by thread \d+ without fence.proxy.async in between at wgmma",
        "ProxyFenceTooLate": r"wgmma reads dynamic .*written by thread \d+ without fence.proxy.async in between",
        "OperandInTile": r"wgmma: an operand at 0x\w+ does not begin in the first row of a tile of 1024 bytes",
        "OtherSwizzle": r"wgmma: the emulator knows the 128-byte swizzle only",
        "BaseOffset": r"wgmma: the emulator knows no base offset",
        "OperandsDiffer": r"wgmma: threads 0 and 77 of the warpgroup gave different operands",
        "WarpExits": r"exited while its warpgroup waits for it in wgmma|wgmma.mma_async: thread \d+ .* has exited",
        "ThreeWarps": r"wgmma.mma_async: a warpgroup is four whole warps",
        "TooMuchShared": r"invalid launch: .* 233472 bytes of dynamic shared memory",
        "NoFenceInPipeline": r"wgmma without wgmma.fence since the accumulators were last waited for at wgmma",
        "NoFenceOfOperand": r"wgmma without wgmma.fence since registers of its operand were last waited for at wgmma",
        "OperandOverwritten": r"registers of an operand were written while a wgmma in flight read them",
        "RegistersDiffer": r"setmaxnreg: \d+ and \d+ registers in one warpgroup",
        "TooManyRegisters": r"setmaxnreg: \d+ registers in a block, of 65536 there are",
    },
    "instructions_sm80": {
        "ReadBeforeWait": r"while an asynchronous copy into it is in flight at instructions_sm80.cu",
        "LanesDiffer": r"warp_uniform: lane 0 gave 1, and lane 5 gave 2",
        "NoSync": r"race: (read of|write to) shared memory\+\d+|read of uninitialised shared memory",
        "OtherNumber": r"deadlock: .*warp 2 lanes ffffffff: bar.sync|ends with 32 of 64 threads at barrier 3",
        "OtherThreads": r"bar.(sync|arrive): barrier 1 is of \d\d threads here, and of \d\d where others came to it",
        "ArriveForSync": r"race: (read of|write to) shared memory\+\d+|read of uninitialised shared memory",
    },
}
FAULTS = {name: faults_of(instruction_library.SOURCES[name]) for name in REPORTS}
# What shows without hooks too: as a report, or as NaN where data were used before their wait.
WITHOUT_HOOKS = {
    "gemm_sm80": {
        "NoWait": None,
        "NoCommit": "exits with cp.async",
        "NoBarrierAfterWait": None,
        "NoLoad": None,
        "SharedOutOfBounds": "ldmatrix",
        "SharedMisaligned": "ldmatrix",
        "BarrierInOneLane": "deadlock",
        "MmaInHalfWarp": "divergent",
    },
    "gemm_sm90": {
        "NoEmptyWait": "more arrivals than the 1",
        "WrongParity": "deadlock",
        "NoReleaseByAWarp": "deadlock",
        "TooFewBytes": "deadlock",
        "TooManyBytes": "deadlock",
        "NoProductFence": "without wgmma.fence",
        "NoProductCommit": "exits with wgmma",
        "NoProductWait": "exits with wgmma",
        "WriteBeforeWait": "was written while a wgmma in flight held it",
        "ProductInThreeWarps": "deadlock",
        "SharedOutOfBounds": "TMA load",
        "UnsolicitedBox": "nobody has waited for",
        "UnreadBox": "nobody has waited for",
    },
}


def product(variant: str, kernel: str, fault: str, seed: int):
    """(report, whether the result is right), of more steps of k than there are stages."""
    library, emulator = instruction_library.for_emulator(variant, kernel)
    emulator.configure(seed)
    a, b = padded(70, 327, torch.float16, small_integers), padded(66, 327, torch.float16, small_integers)
    report, out = library.gemm(kernel, a, b, False, FAULTS[kernel].index(fault))
    return report, torch.equal(out.long(), a.long() @ b.t().long())


def test_a_report_names_the_matrix_that_was_left_wherever_the_other_one_lies() -> None:
    """Where the allocator put b right behind a, the rows that a has not got would be nearer to b, or be its rows."""
    library, emulator = instruction_library.for_emulator("race", "gemm_sm80")
    held = torch.zeros(2 * 128, 328, dtype=torch.float16)
    for seed in SEEDS:
        emulator.configure(seed)
        report, _ = library.gemm(
            "gemm_sm80", held[:70, :327], held[70:136, :327], False, FAULTS["gemm_sm80"].index("GlobalRows")
        )
        assert re.search(REPORTS["gemm_sm80"]["GlobalRows"], report), f"seed {seed}: {report}"


def instruction(fault: str, seed: int) -> str:
    """The report of a kernel of one instruction."""
    kernel = "instructions_sm80" if fault in REPORTS["instructions_sm80"] else "instructions_sm90"
    library, emulator = instruction_library.for_emulator("race", kernel)
    emulator.configure(seed)
    number, later = FAULTS[kernel].index(fault), lambda first: FAULTS[kernel].index(first) <= number
    rows = torch.zeros(12, 32, dtype=torch.int32)
    if kernel == "instructions_sm80":
        name = "run_named_barrier" if later("NoSync") else "run_uniform" if later("LanesDiffer") else "run_cp_async"
        out = rows.flatten()[:256].clone()
        return library.call(name, out, {"a": rows}, *((0, number) if name == "run_cp_async" else (number,)))
    if later("RegistersDiffer"):
        return library.call("run_registers", rows.clone(), {"a": rows}, number)
    if later("NoFenceInPipeline"):
        _, operands = instruction_cases.wide_operands(torch.float16, 64, "registers, MN-major b")
        if fault == "OperandOverwritten":
            return library.call("run_wide", torch.zeros(128, 32), operands, 0, 64, 4, number)
        return library.call("run_pipeline", torch.zeros(128, 32), operands, number)
    if later("NoProxyFence"):  # the first of wgmma's
        _, _, tiles = instruction_cases.wgmma_operands(torch.float16, False)
        return library.call("run_wgmma", torch.zeros(128, 32), tiles, 0, 0, number)
    return library.call("run_mbarrier", rows[:4].clone(), {"a": rows[:4]}, 4, number)


def test_every_fault_is_listed() -> None:
    for name, faults in FAULTS.items():
        assert faults == ["None", *REPORTS[name]]


@pytest.mark.parametrize("kernel, fault", [(kernel, fault) for kernel in REPORTS for fault in REPORTS[kernel]])
def test_each_fault_is_reported_at_every_seed(kernel: str, fault: str) -> None:
    def report_at(seed: int) -> str:
        return product("race", kernel, fault, seed)[0] if "gemm" in kernel else instruction(fault, seed)

    assert_reported(report_at, REPORTS[kernel][fault])


@pytest.mark.parametrize("kernel, fault", [(k, fault) for k, faults in WITHOUT_HOOKS.items() for fault in faults])
def test_what_shows_without_hooks(kernel: str, fault: str) -> None:
    for seed in SEEDS:
        report, right = product("plain", kernel, fault, seed)
        expected = WITHOUT_HOOKS[kernel][fault]
        assert not right and (report == "" if expected is None else expected in report), f"seed {seed}: {report}"


def test_a_copy_takes_away_what_its_target_held() -> None:
    """Until it lands there is NaN, so that data of a step before do not pass for those of this one."""
    rows, out = torch.zeros(2, 32, 4, dtype=torch.int32), torch.zeros(32, 2, 4, dtype=torch.int32)
    for seed in SEEDS:
        library, emulator = instruction_library.for_emulator("plain", "instructions_sm80")
        emulator.configure(seed)
        library.run("run_cp_async", out, {"a": rows}, 0, 1)
        assert torch.equal(out[:, 0], rows[0]) and torch.all(out[:, 1] == -1)
        library, emulator = instruction_library.for_emulator("race", "instructions_sm80")
        emulator.configure(seed)
        report = library.call("run_cp_async", out, {"a": rows}, 0, 1)
        assert "while an asynchronous copy into it is in flight at instructions_sm80.cu" in report


def test_dynamic_shared_memory_is_aligned_as_asked_and_no_better() -> None:
    report, _ = product("plain", "gemm_sm90", "TooFewBytes", 1)
    address = re.search(r"the mbarrier at 0x(\w+), in a phase", report)  # behind stages of a multiple of 2048 bytes
    assert address is not None and int(address[1], 16) // 1024 % 2 == 1


@pytest.mark.parametrize(
    "first, shift, report",
    [
        (1, 0, r"cp.async: 0x\w+ is no multiple of 16"),
        (0, -20, r"cp.async: -\d+ of 16 bytes"),
    ],
)
def test_what_cp_async_refuses(first, shift, report) -> None:
    library, _ = instruction_library.for_emulator("race", "instructions_sm80")
    data, out = torch.zeros(1100, dtype=torch.uint8), torch.zeros(32, 8, dtype=torch.int32)
    aligned = -data.data_ptr() % 16
    assert re.search(report, library.call("run_cp_async", out, {"a": data[aligned + first :]}, shift, 0))


@pytest.mark.parametrize(
    "first, rows, columns, stride, report",
    [
        (2, 64, 64, 64, r"tensor map: 0x\w+ is no multiple of 16"),
        (0, 64, 64, 68, r"tensor map: rows 136 bytes apart"),
        (0, 0, 64, 64, r"tensor map: a size of 0"),
    ],
)
def test_what_a_tensor_map_refuses(first, rows, columns, stride, report) -> None:
    library, _ = instruction_library.for_emulator("plain", "instructions_sm90")
    data, out = torch.zeros(20000, dtype=torch.uint8), torch.zeros(64, 32, dtype=torch.int32)
    aligned = -data.data_ptr() % 16
    numbers = (2, rows, columns, stride, 0, 0)
    assert re.search(report, library.call("run_tma", out, {"a": data[aligned + first :]}, *numbers))


def test_a_box_reads_the_matrix_alone() -> None:
    """What a tensor map says to exist, and the tensor has not."""
    library, _ = instruction_library.for_emulator("race", "instructions_sm90")
    data, out = torch.zeros(60, 64, dtype=torch.int16), torch.zeros(64, 32, dtype=torch.int32)
    report = library.call("run_tma", out, {"a": data}, 2, 61, 64, 64, 0, 0)
    assert re.search(r"out of bounds: read of 2 bytes at a\+7680, a buffer of 7680 bytes at tma", report)


def test_a_report_names_the_wrapper_and_the_line_of_the_kernel() -> None:
    report, _ = product("race", "gemm_sm80", "NoWait", 1)
    lines = instruction_library.SOURCES["gemm_sm80"].read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "ldmatrix(fa[i]," in text)
    assert re.search(rf"thread \(\d+,0,0\) \[warp \d lane \d+\].* at ldmatrix.cuh:\d+, gemm_sm80.cu:{line}$", report)


SANITIZED = """
import torch, instruction_library
from instruction_library import padded, small_integers
library, emulator = instruction_library.for_emulator("asan", {kernel!r})
emulator.configure(2)
# One row short of a tile: what a fault reads or writes lies where the sanitizer's mark of a tensor's end still is.
a, b = padded(127, 327, torch.float16, small_integers), padded(66, 327, torch.float16, small_integers)
report, out = library.gemm({kernel!r}, a, b, False, {fault})
assert report == "" and torch.equal(out.long(), a.long() @ b.t().long())
"""


PRODUCT = """
#include "arch/wgmma.cuh"
void product(float (&d)[%d]) { fasttx::wgmma<__half>(d, 0, 0, true); }
"""


@pytest.mark.parametrize("columns, compiles", [(32, True), (40, False), (144, False), (256, True)])
def test_a_width_that_has_no_instruction_is_no_product(columns: int, compiles: bool, tmp_path) -> None:
    """The branch for each width would be left out, and d stay what it was."""
    source = tmp_path / "product.cpp"
    source.write_text(PRODUCT % (columns // 2))
    command = [str(host_build.compiler()), *host_build._flags("-include", "cuda_emulator.h"), "-fsyntax-only"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert (done.returncode == 0) == compiles, done.stderr[-2000:]
    assert compiles or "n of FTX_WGMMA_SHAPES" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, fault, report",
    [
        ("gemm_sm80", "None", ""),
        ("gemm_sm90", "None", ""),
        ("gemm_sm80", "StoreRows", r"AddressSanitizer: heap-[\s\S]*gemm_sm80.cu"),
        ("gemm_sm80", "GlobalRows", r"AddressSanitizer: heap-[\s\S]*cp_async"),
    ],
)
def test_sanitizers_see_what_leaves_a_tensor(kernel: str, fault: str, report: str) -> None:
    code = SANITIZED.format(kernel=kernel, fault=FAULTS[kernel].index(fault))
    environment = host_build.sanitizer_environment()
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == (fault == "None"), done.stderr[-3000:]
    assert re.search(report, done.stderr), done.stderr[-3000:]
