"""What nvcc makes of attention's forward by wgmma and TMA: its registers, and the instructions of its loop of keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import cuda_build
import pytest
from cuda import machine_code
from cuda.machine_code import Instruction
from cuda.ways import named, shortest_way

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]

SOURCE = cuda_build.CSRC / "attention" / "attention_fwd_sm90.cu"
SCORES = 64 * 128 // 128
"""Of a thread: a tile of 64 queries and 128 keys, by a warpgroup."""
REGISTERS = {32: 160, 64: 160, 96: 232, 128: 232}
# docs/kernels/attention_cuda.md: instructions a thread and score, without dropout and with it
MOST = {32: (6.6, 11.4), 64: (6.8, 11.6), 96: (6.9, 11.6), 128: (7.0, 11.9)}


def loop_of_keys(kernel: machine_code.Kernel) -> Sequence[Instruction]:
    """The inner one with both products: of the warpgroup's 64 rows S, and O with P from registers."""
    forms = (r"HGMMA\.\S+ R\d+, gdesc", r"HGMMA\.\S+ R\d+, R\d+, gdesc\[UR\d+\]\.tnspB")
    return next(loop for loop in kernel.loops if all(any(re.search(f, i.text) for i in loop) for f in forms))


def test_a_block_of_keys() -> None:
    found = machine_code.kernels(SOURCE, "90a")
    assert len(found) == 2 * 3 * len(REGISTERS)
    for kernel in found:
        dim, dropout, masks = (int(n) for n in re.search(r"Li(\d+)ELb(\d)ELb(\d)E", kernel.name).groups())
        assert kernel.stack_bytes == 0 and not [i for i in kernel.instructions if i.startswith(("LDL", "STL"))]
        assert kernel.highest_register < kernel.most_registers == (216 if masks else REGISTERS[dim]), kernel.name
        if masks:
            continue
        loop = loop_of_keys(kernel)
        philox = [lambda i: re.search(r"0xd2511f53|-0x2daee0ad", i.text) is not None] if dropout else []
        way = shortest_way(loop, [named("HGMMA"), *philox])
        counted = Counter(i.name for i in way)
        dtype = ".F32.BF16" if "bfloat16" in kernel.name else ".F32"
        wanted = Counter({f"HGMMA.64x128x16{dtype}": dim // 16})
        wanted[f"HGMMA.64x{dim}x16{dtype}"] += 128 // 16
        assert Counter({name: n for name, n in counted.items() if "GMMA" in name}) == wanted, kernel.name
        assert counted["MUFU.EX2"] == SCORES + 2  # and alpha of each row
        assert not [i for i in loop if i.name == "R2UR"], "descriptors are made once a warp"
        assert not [n for n in counted if n.startswith(("LDG", "STG", "LDS", "STS", "BAR", "ATOM", "RED"))], kernel.name
        assert len(way) <= MOST[dim][dropout] * SCORES, (kernel.name, len(way) / SCORES)
