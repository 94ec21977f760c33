"""The int8 product as nvcc makes it: tensor cores, copies past the registers, and no more than that in the hot loop."""

from __future__ import annotations

import re

import cuda_build
import pytest
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]
SOURCE = cuda_build.CSRC / "int8_linear" / "int8_linear_sm80.cu"
ARCHS = ["80", "90a", "100"]
# of each tile: products of a warp a step of k, ldmatrix, copies of a thread, registers that the blocks of a
# multiprocessor leave a thread, and instructions of the hot loop at most
TILES = {0: (64, 16, 8, 255, 170), 1: (32, 12, 6, 168, 120), 2: (32, 16, 8, 128, 135), 3: (16, 8, 6, 128, 100)}
TILES[4] = (8, 6, 6, 128, 90)


def kernel_of(tile: int, arch: str, aligned: bool = True) -> machine_code.Kernel:
    (found,) = [k for k in machine_code.kernels(SOURCE, arch) if f"ILi{tile}ELb{int(aligned)}E" in k.name]
    return found


def count(names: tuple[str, ...] | list[str], start: str) -> int:
    return sum(name.startswith(start) for name in names)


def loop_of_products(names: tuple[str, ...]) -> list[str]:
    """From the wait for a stage to the branch back: copies of a later one, and the products."""
    first = next(i for i, name in enumerate(names) if name.startswith("IMMA"))
    wait = max(i for i, name in enumerate(names[:first]) if name.startswith("DEPBAR"))
    end = next(i for i, name in enumerate(names) if i > first and name.startswith("BRA"))
    return list(names[wait : end + 1])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("tile", TILES)
def test_a_step_of_k(tile: int, arch: str) -> None:
    products, reads, copies, registers, bound = TILES[tile]
    kernel = kernel_of(tile, arch)
    loop = loop_of_products(kernel.instructions)
    print(
        kernel.name, arch, kernel.registers, "registers", len(loop), "instructions of", count(loop, "IMMA"), "products"
    )
    assert kernel.registers <= registers and kernel.stack_bytes == 0
    times = count(loop, "IMMA") // products  # of a loop that was unrolled
    assert times >= 1 and count(loop, "IMMA.16832.S8.S8") == count(loop, "IMMA") == times * products
    assert count(loop, "LDSM.16.M88.4") == count(loop, "LDSM") == times * reads
    assert count(loop, "LDGSTS") == times * copies
    assert all(".128" in name and "BYPASS" in name for name in loop if name.startswith("LDGSTS"))
    assert count(loop, "BAR") == times and len(loop) <= times * bound


@pytest.mark.parametrize("arch", ARCHS)
def test_no_local_memory_and_no_spill(arch: str) -> None:
    for kernel in machine_code.kernels(SOURCE, arch):
        assert kernel.stack_bytes == 0 and not [n for n in kernel.instructions if re.match("LDL|STL", n)], kernel.name


@pytest.mark.parametrize("arch", ARCHS)
def test_bytes_that_are_gathered(arch: str) -> None:
    """Words and bytes instead of copies, the same products."""
    names = kernel_of(2, arch, aligned=False).instructions
    assert count(names, "LDGSTS") == 0 and count(names, "IMMA.16832.S8.S8") >= 32 and count(names, "LDSM") >= 16
    loads = {name for name in names if name.startswith("LDG.E")}
    assert "LDG.E.U8" in "".join(sorted(loads)) and "LDG.E" in loads, loads


@pytest.mark.parametrize("arch", ARCHS)
def test_sums_go_through_shared_memory_by_wide_accesses(arch: str) -> None:
    for kernel in machine_code.kernels(SOURCE, arch):
        stores = [n for n in kernel.instructions if n.startswith("STS")]
        assert any(".64" in n for n in stores) and any(n.startswith("LDS.128") for n in kernel.instructions)
