"""Kernels that memory bounds, as machine code: what hot loops execute, and what is on its way before it is used."""

from __future__ import annotations

from collections.abc import Iterable

import cuda_build
import pytest
from cuda import machine_code
from cuda.machine_code import Instruction, Kernel

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(900)]

TYPES = {"f": 4, "6__half": 2, "13__nv_bfloat16": 2}
"""Bytes of an element, by its mangled name."""
STREAMED = "Li512ELNS_4FormE1E"


def found(file: str, part: str, arch: str) -> Kernel:
    source = next(p for p in cuda_build.CSRC.glob("*/*.cu") if p.stem == file)
    (kernel,) = [k for k in machine_code.kernels(source, arch) if part in k.name]
    return kernel


def wide_loads(code: Iterable[Instruction]) -> int:
    return sum(i.name.startswith("LDG") and ".128" in i.name for i in code)


def before_first_use(code: Iterable[Instruction]) -> int:
    """The most 16-byte loads in a row of which none is used before the last has begun."""
    loaded: set[int] = set()
    count = most = 0
    for i in code:
        if i.name.startswith("LDG") and ".128" in i.name:
            loaded |= {int(i.operands[0].removeprefix("R")) + n for n in range(4)}
            count += 1
        elif loaded & i.registers:
            loaded, count = set(), 0
        most = max(most, count)
    return most


def hot_loop(kernel: Kernel, loads: int) -> tuple[Instruction, ...]:
    """The shortest loop with that many 16-byte loads: of whole tiles."""
    return next(loop for loop in kernel.loops if wide_loads(loop) == loads)


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_loss_takes_115_instructions_for_16_elements(kind, arch):
    for threads in (32, 256):
        kernel = found("cross_entropy", f"24cross_entropy_fwd_kernelI{kind}Li{threads}ELb0ELb0EEEv", arch)
        loop = hot_loop(kernel, TYPES[kind])
        print(arch, kind, threads, len(loop))
        assert len(loop) <= 115 and before_first_use(loop) == TYPES[kind]
        assert not any(i.name.startswith("R2UR") for i in loop)


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("kind", TYPES)
def test_softmax_without_a_mask_takes_115_instructions_for_16_elements(kind, arch):
    kernel = found("softmax", f"18softmax_fwd_kernelI{kind}{STREAMED}Lb0EEEv", arch)
    first = hot_loop(kernel, TYPES[kind])
    print(arch, kind, len(first))
    assert len(first) <= 115 and before_first_use(first) == TYPES[kind]
    assert not any(i.name.startswith("R2UR") for i in first)


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("kind", TYPES)
def test_both_tensors_of_a_row_are_on_their_way_before_the_first_is_used(kind, arch):
    kernel = found("softmax", f"18softmax_bwd_kernelI{kind}{STREAMED}EEv", arch)
    assert before_first_use(hot_loop(kernel, 2 * TYPES[kind])) == 2 * TYPES[kind]
    for threads in (32, 64, 128, 256, 512):
        resident = found("softmax", f"18softmax_bwd_kernelI{kind}Li{threads}ELNS_4FormE0EEEv", arch)
        assert before_first_use(resident.code) == 2 * TYPES[kind]
