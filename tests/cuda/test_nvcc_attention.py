"""What nvcc makes of attention's forward: its instructions, and how many a score costs on the way of a whole tile."""

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

SOURCE = cuda_build.CSRC / "attention" / "attention_fwd_sm80.cu"
TILES = {32: (2, 64), 64: (2, 64), 96: (2, 32), 128: (2, 32), 192: (1, 32), 256: (1, 32)}
"""By head_dim: blocks of 16 queries a warp, and keys (attention_config.h)."""
# docs/kernels/attention_cuda.md: instructions a thread and score, without dropout and with it, on 8.0, 9.0 and 10.0
MOST = {32: (11, 15.5), 64: (14, 18.5), 96: (21.5, 26.5), 128: (25, 30), 192: (45, 51), 256: (55, 61)}


def head_dim(kernel: machine_code.Kernel) -> int:
    return int(re.search(r"Li(\d+)E", kernel.name)[1])


def loop_of_keys(kernel: machine_code.Kernel) -> Sequence[Instruction]:
    """The outer one of those with products."""
    return [loop for loop in kernel.loops if any(i.name.startswith("HMMA") for i in loop)][-1]


@pytest.mark.parametrize("arch", ["80", "90a", "100"])
def test_a_tile_of_keys(arch: str) -> None:
    found = machine_code.kernels(SOURCE, arch)
    assert sorted(head_dim(k) for k in found) == sorted(2 * list(TILES))
    for kernel in found:
        assert kernel.stack_bytes == 0 and not [i for i in kernel.instructions if i.startswith(("LDL", "STL"))]
        assert kernel.registers <= 255 and "BAR.SYNC" in "".join(kernel.instructions)
        dim = head_dim(kernel)
        blocks, keys = TILES[dim]
        loop, scores = loop_of_keys(kernel), blocks * 16 * keys // 32  # of a thread
        copies = 2 * keys * dim // 8 // 128
        through = [named("LDGSTS.E.BYPASS.128.ZFILL")] * copies + [named("HMMA")]
        plain = shortest_way(loop, through)
        dropout = shortest_way(loop, [*through, lambda i: re.search(r"0xd2511f53|-0x2daee0ad", i.text) is not None])
        for way, most in zip((plain, dropout), MOST[dim], strict=True):
            counted = Counter(i.name for i in way)
            dtype = "HMMA.16816.F32.BF16" if "bfloat16" in kernel.name else "HMMA.16816.F32"
            # S: 16 keys x 16 k an instruction pair; as many for P V
            assert counted[dtype] == 2 * blocks * (keys // 8) * (dim // 16), kernel.name
            assert counted["LDSM.16.M88.4"] == dim // 16 * (blocks + keys // 16)  # Q and K
            assert counted["LDSM.16.MT88.4"] == dim // 16 * (keys // 16)  # V
            assert counted["MUFU.EX2"] == scores + 2 * blocks  # and alpha of each row
            assert sum(n for name, n in counted.items() if name.startswith("LDGSTS")) == copies
            elsewhere = Counter(
                name[:3] for name in counted.elements() if name.startswith(("LDG.", "STG", "ATO", "RED"))
            )
            assert elsewhere <= Counter(LDG=2), "of dropout the seed and the offset; masks cost nothing"
            assert counted["BAR.SYNC.DEFER_BLOCKING"] + counted["BAR.SYNC"] == 1, "one barrier a tile"
            assert len(way) <= most * scores, (kernel.name, len(way) / scores)
