"""What nvcc makes of attention's backward: products on tensor cores, operands by ldmatrix, copies by cp.async."""

from __future__ import annotations

import cuda_build
import pytest
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]

PARTS = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128.ZFILL", "MUFU.EX2")


@pytest.mark.parametrize("arch", ["80", "90a", "100"])
@pytest.mark.parametrize("file", ["attention_bwd_sm80", "attention_bwd_dq_sm80"])
def test_products_and_copies(file: str, arch: str) -> None:
    found = machine_code.kernels(cuda_build.CSRC / "attention" / f"{file}.cu", arch)
    with_products = [k for k in found if "delta" not in k.name]
    assert len(with_products) == 2 * 7
    for kernel in found:
        local = [i for i in kernel.instructions if i.startswith(("LDL", "STL"))]
        assert kernel.stack_bytes == 0 and not local, f"{kernel.name} uses local memory"
    for kernel in with_products:
        lacking = [part for part in PARTS if not any(i.startswith(part) for i in kernel.instructions)]
        assert not lacking, f"{kernel.name} lacks {lacking}"
        assert not [i for i in kernel.instructions if i.startswith(("ATOM", "RED"))], f"{kernel.name} has atomics"
        # a call of Philox is 7 rounds of two wide products
        wide = sum(i.startswith("IMAD.WIDE.U32") for i in kernel.instructions)
        assert (wide >= 14) == ("Lb1E" in kernel.name), kernel.name
