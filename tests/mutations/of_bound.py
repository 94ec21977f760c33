"""Faults in the bound by machine code."""

from __future__ import annotations

from mutation import Mutation

TESTS = ("tests/bench/test_bound.py", "-m", "not slow")
UNITS, BOUND_FILE = "bench/machine_units.py", "bench/bound.py"
BOUND = [
    Mutation(UNITS, 'used["MUFU"] += LANES / SPECIALS', 'used["MUFU"] += LANES / INTEGERS', TESTS),
    Mutation(UNITS, '(2 if kind == "I" else 1)', "1", TESTS),
    Mutation(UNITS, 'max(used["FMA"], multiplies * LANES / INTEGERS)', 'used["FMA"]', TESTS),
    Mutation(UNITS, "16 / chip.wide / 4", "16 / chip.wide", TESTS),
    Mutation(BOUND_FILE, "tiles if rounds <= stages", "tiles if rounds < stages", TESTS),
    Mutation(UNITS, '16 if ".128" in name else 8', "8", TESTS),
    Mutation(UNITS, "shared_bytes(name) / L2_BYTES", "0", TESTS),
    Mutation(BOUND_FILE, "ceil(work.blocks / chip.multiprocessors)", "work.blocks / chip.multiprocessors", TESTS),
    Mutation(BOUND_FILE, "return max(self.microseconds.values())", "return sum(self.microseconds.values())", TESTS),
    Mutation(BOUND_FILE, "ceil(seqlen / keys)", "seqlen // keys", TESTS),
]
