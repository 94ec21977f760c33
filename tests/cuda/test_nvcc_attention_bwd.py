"""What nvcc makes of attention's backward: products on tensor cores, operands by ldmatrix, copies by cp.async."""

from __future__ import annotations

import cuda_build
import pytest
from cuda import machine_code

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
