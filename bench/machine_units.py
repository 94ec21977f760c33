"""The units of a multiprocessor, and the clocks that instructions of machine code cost each of them at the least.

Rates: results a clock and multiprocessor of NVIDIA's CUDA C++ programming guide, and peaks of the data sheets. Three
are neither. `mma.sync` on sm_90 has two thirds of the rate of wgmma: microbenchmarks found 63 % on average, and a bound
may not be slower than that. On sm_100, for which there is no such figure, the same is assumed. And L2 is assumed to
give a multiprocessor 64 bytes a clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Chip(NamedTuple):
    """A GPU by its data sheet; `products` is 16-bit multiply-adds of mma.sync a clock of a multiprocessor, `wide` those
    of wgmma; 0 where it has none."""

    name: str
    multiprocessors: int
    hertz: float
    bytes_a_second: float
    products: float
    floats: int
    """float32 results a clock of a multiprocessor."""
    wide: float = 0


CHIPS = {
    "80": Chip("A100", 108, 1.41e9, 2.04e12, 1024, 64),
    "90": Chip("H200", 132, 1.83e9, 4.8e12, 2048 * 2 / 3, 128, 2048),
    "100": Chip("B200", 148, 1.85e9, 8.0e12, 2048 * 2 / 3, 128),
}
UNITS = ("tensor cores", "MUFU", "FMA", "ALU", "issue", "shared memory", "L2", "HBM")
ISSUED, LANES = 4, 32
INTEGERS, SPECIALS = 64, 16
"""Integer and special results a clock of a multiprocessor."""
SHARED_BYTES, L2_BYTES = 128, 64
"""Bytes a clock of a multiprocessor."""

PRODUCT = re.compile(r"([HI])MMA\.(16)(8)(16|32)\.")
WIDE = re.compile(r"HGMMA\.64x(\d+)x16\.F32(?!\.TF32)")
FROM_REGISTERS = ".RS"
"""Ends the name of a wgmma whose first operand is in registers: machine code tells that by the operands alone."""
FLOAT = re.compile(r"(FFMA|FMUL|FADD)(2?)(\.|$)|HFMA2|HMUL2|HADD2")
MULTIPLY = re.compile(r"IMAD|IDP")
ELSEWHERE = re.compile(
    r"LD|ST|SYNCS|VOTE|MUFU|SHFL|BAR|BRA|BSSY|BSYNC|EXIT|NOP|WARPSYNC|DEPBAR|MEMBAR|ERRBAR|S2R|CS2R|R2UR|U[A-Z]|CCTL|WARPGROUP|CALL|RET"
)
"""What is neither arithmetic of a lane nor a product: other units, control, and the uniform path of a warp."""


def shared_bytes(name: str) -> int:
    """That an instruction of a warp moves to or from shared memory, without conflicts of banks."""
    if name.startswith("LDSM"):
        return 128 * int(name.rsplit(".", 1)[1])
    if name.startswith(("LDS", "STS", "LDGSTS")) or name.startswith("SHFL"):
        return LANES * (16 if ".128" in name else 8 if ".64" in name else 4)
    if wide := WIDE.match(name):  # one of four warps that share it; 16 of k, 2 bytes each
        return 16 * 2 * (int(wide[1]) + (0 if name.endswith(FROM_REGISTERS) else 64)) // 4
    return 0


def clocks(names: Iterable[str], chip: Chip) -> dict[str, float]:
    """Of a multiprocessor that executes these instructions of a warp, by unit; HBM is not known from them."""
    used = dict.fromkeys(UNITS[:-1], 0.0)
    multiplies = 0
    for name in names:
        used["issue"] += 1 / ISSUED
        used["shared memory"] += shared_bytes(name) / SHARED_BYTES
        product, float_ = PRODUCT.match(name), FLOAT.match(name)
        if product:
            kind, m, n, k = product.groups()
            rate = chip.products * (2 if kind == "I" else 1)
            used["tensor cores"] += int(m) * int(n) * int(k) / rate
        elif chip.wide and (wide := WIDE.match(name)):
            used["tensor cores"] += 64 * int(wide[1]) * 16 / chip.wide / 4
        elif re.match(r"\w*MMA", name):
            raise ValueError(f"instruction: got {name}; allowed is mma.sync with 16 x 8 results, or wgmma on sm_90")
        elif name.startswith("MUFU"):
            used["MUFU"] += LANES / SPECIALS
        elif float_:
            used["FMA"] += LANES / chip.floats * (2 if float_[2] else 1)
        elif MULTIPLY.match(name):
            used["FMA"] += LANES / chip.floats
            multiplies += 1
        elif not ELSEWHERE.match(name):
            used["ALU"] += LANES / INTEGERS
        if name.startswith("LDGSTS"):
            used["L2"] += shared_bytes(name) / L2_BYTES
    used["FMA"] = max(used["FMA"], multiplies * LANES / INTEGERS)  # one half of the unit multiplies integers
    return used
