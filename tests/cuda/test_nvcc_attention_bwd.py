"""What nvcc makes of attention's backward: products on tensor cores, operands by ldmatrix, copies by cp.async."""

from __future__ import annotations

import re
from collections import Counter

import cuda_build
import pytest
from cuda import machine_code
from cuda.ways import named, shortest_way

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]

KERNELS = {"attention_bwd_sm80": 2 * 7, "attention_bwd_dq_sm80": 2 * 7, "attention_bwd_dbias_sm80": 2 * 4}
PARTS = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128.ZFILL", "MUFU.EX2")


@pytest.mark.parametrize("arch", ["80", "90a", "100"])
@pytest.mark.parametrize("file", KERNELS)
def test_products_and_copies(file: str, arch: str) -> None:
    found = machine_code.kernels(cuda_build.CSRC / "attention" / f"{file}.cu", arch)
    with_products = [k for k in found if "delta" not in k.name]
    assert len(with_products) == KERNELS[file]
    for kernel in found:
        local = [i for i in kernel.instructions if i.startswith(("LDL", "STL"))]
        assert kernel.stack_bytes == 0 and not local, f"{kernel.name} uses local memory"
    for kernel in with_products:
        lacking = [
            part
            for part in PARTS
            if ("MT88" not in part or "dbias" not in file) and not any(i.startswith(part) for i in kernel.instructions)
        ]
        assert not lacking, f"{kernel.name} lacks {lacking}"
        assert not [i for i in kernel.instructions if i.startswith(("ATOM", "RED"))], f"{kernel.name} has atomics"


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("file, calls", [("attention_bwd_sm80", (4, 4, 2)), ("attention_bwd_dq_sm80", (2, 2, 1))])
def test_a_call_of_philox_is_not_made_twice(file: str, calls: tuple[int, int, int], arch: str) -> None:
    """Of head_dim 32, 64 and 128: what one tile takes. A call is 7 rounds of 2 wide products, the first ones shared."""
    found = machine_code.kernels(cuda_build.CSRC / "attention" / f"{file}.cu", arch)
    for head_dim, least in zip((32, 64, 128), calls, strict=True):
        wide = {
            dropout: sum(
                i.startswith(("IMAD.WIDE.U32", "IMAD.HI.U32"))
                for k in found
                if f"bfloat16Li{head_dim}ELb{dropout}E" in k.name
                for i in k.instructions
            )
            for dropout in (0, 1)
        }
        assert 12 * least <= wide[1] - wide[0] <= 14 * least, f"{head_dim}: {wide}"


# docs/kernels/attention.md: instructions of a thread and score on sm_90a, without dropout and with it
MOST = {32: (23, 34), 64: (30, 42), 128: (55, 69)}


@pytest.mark.parametrize("dropout", [0, 1])
@pytest.mark.parametrize("head_dim", list(MOST))
def test_a_tile_of_queries_with_dq(head_dim: int, dropout: int) -> None:
    """On the way of a tile without a mask: five products, an exponential a score, and two barriers."""
    warps, queries = (8, 64) if head_dim <= 64 else (4, 32)
    scores, steps = 16 * queries // 32, head_dim // 16
    through = [named("LDGSTS.E.BYPASS.128.ZFILL")] * (2 * queries * head_dim // 8 // (32 * warps)) + [named("HMMA")]
    if dropout:
        through.append(lambda i: re.search(r"0xd2511f53|-0x2daee0ad", i.text) is not None)
    through += [named("STS"), named("BAR"), named("STS.128")]  # dS, and the sums of dq
    for kernel in machine_code.kernels(cuda_build.CSRC / "attention" / "attention_bwd_sm80.cu", "90a"):
        if f"Li{head_dim}ELb{dropout}E" not in kernel.name:
            continue
        loop = min((x for x in kernel.loops if any(i.name.startswith("HMMA") for i in x)), key=len)
        way = shortest_way(loop, through)
        counted = Counter(i.name.split(".")[0] for i in way)
        # 16 keys of S and of dP, 16 k of dV and of dK; a share of dQ as large: 16 queries of 16 keys a warp
        assert counted["HMMA"] == 5 * (queries // 8) * steps
        assert counted["MUFU"] == scores and counted["BAR"] == 2
        assert counted["SHFL"] == (queries // 16 if dropout else 0)
        assert len(way) <= MOST[head_dim][dropout] * scores, len(way) / scores
