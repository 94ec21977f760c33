"""Faults in csrc/arch, as far as the emulator runs it, and in the emulator's own checks."""

from __future__ import annotations

from mutation import Mutation
from selections import FAULTS, INSTRUCTION_FAULTS, WITHOUT_HOOKS, WRAPPERS

# What of csrc/arch the emulator executes; PTX is run on a GPU alone.
ARCH = [
    Mutation("csrc/arch/mma.cuh", "{b0, b1};\n  ::emu::mma_m16n8k32", "{b1, b0};\n  ::emu::mma_m16n8k32", WRAPPERS),
    Mutation("csrc/arch/mma.cuh", "__half> ? ::emu::Element::kF16", "__half> ? ::emu::Element::kBF16", WRAPPERS),
    Mutation("csrc/arch/ldmatrix.cuh", "ldmatrix_x4(r, row, true)", "ldmatrix_x4(r, row, false)", WRAPPERS),
    Mutation("csrc/arch/cp_async.cuh", "global, valid_bytes);\n#else", "global, valid_bytes & 15);\n#else", WRAPPERS),
    Mutation("csrc/arch/cp_async.cuh", "emu::cp_async_wait(kLeft)", "emu::cp_async_wait(kLeft + 1)", WRAPPERS),
    Mutation("csrc/arch/wgmma.cuh", "kTileBytes = 1024", "kTileBytes = 512", WRAPPERS),
    Mutation("csrc/arch/wgmma.cuh", "emu::wgmma_wait(kLeft)", "emu::wgmma_wait(kLeft + 1)", WRAPPERS),
    Mutation(
        "csrc/arch/tma.cuh",
        "map.fields, barrier, row, column, i, j)",
        "map.fields, barrier, column, row, i, j)",
        WRAPPERS,
    ),
    Mutation(
        "csrc/arch/mbarrier.cuh", "mbarrier_arrive(barrier, bytes)", "mbarrier_arrive(barrier, 2 * bytes)", WRAPPERS
    ),
    Mutation("csrc/arch/cluster.cuh", "cluster_address(shared, rank)", "cluster_address(shared, 0)", WRAPPERS),
    Mutation("csrc/arch/aligned.cuh", "  ::emu::check_alignment(p, sizeof(V));\n", "", FAULTS),
]

# A check of the emulator that is gone.
EMULATOR = [
    Mutation("tests/emulator/runtime/memory.cpp", "if (a % align == 0) return;", "if (a % align < 16) return;", FAULTS),
    Mutation("tests/emulator/runtime/memory.cpp", "if (write && !b.writable) {", "if (write && n == 0) {", FAULTS),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "    if (!ordered(byte.writer, byte.write_time, access)) unordered(byte.writer);\n",
        "",
        FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "if (access.is_shared && !access.write && !byte.written) {",
        "if (access.is_shared && extent.bytes.empty()) {",
        FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/order.cpp",
        "extent.bytes[i].in_flight = true;",
        "extent.bytes[i].in_flight = false;",
        INSTRUCTION_FAULTS,
    ),
    Mutation("tests/emulator/runtime/sm90.cpp", "if (b.pending == 0) {", "if (b.arrivals == 0) {", WITHOUT_HOOKS),
    Mutation(
        "tests/emulator/runtime/wgmma.cpp",
        "if (!is_fenced(product.d)) {",
        "if (running == nullptr) {",
        INSTRUCTION_FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/wgmma.cpp",
        "mine.last_wait.end() || waited->second < mine.fences",
        "mine.last_wait.end() || true",
        INSTRUCTION_FAULTS,
    ),
    Mutation(
        "tests/emulator/runtime/rendezvous.cpp", "if (b.threads != threads) {", "if (false) {", INSTRUCTION_FAULTS
    ),
]
