"""Each wrapper of csrc/arch on a GPU, against the same expectation as in the emulator (tests/emulator).

What the emulator cannot show: that the inline PTX does what its second body does. nvcc compiles the kernels here.
"""

from __future__ import annotations

import cuda_build
import host_build
import instruction_cases
import instruction_library
import pytest
import torch
from instruction_library import padded, small_integers


def kernels(source: str) -> instruction_library.Library:
    """Of this GPU, which takes nvcc; in a rehearsal, of the emulator, which takes g++."""
    lacks = cuda_build.lacks() if torch.cuda.is_available() else host_build.lacks()
    if lacks is not None:
        pytest.skip(lacks)
    if not torch.cuda.is_available():
        return instruction_library.for_emulator("plain", source)[0]
    capability = torch.cuda.get_device_capability()
    if source.endswith("sm90") and capability != (9, 0):
        pytest.skip("wgmma exists on capability 9.0 alone")
    if source.endswith("cluster") and capability < (9, 0):
        pytest.skip("clusters exist from capability 9.0 on")
    return instruction_library.for_gpu("90a" if source.endswith("sm90") else f"{capability[0]}{capability[1]}", source)


@pytest.mark.parametrize("name", instruction_cases.SM80)
def test_instructions_of_ampere(name):
    instruction_cases.SM80[name](kernels("instructions_sm80"))


@pytest.mark.parametrize("name", instruction_cases.SM90)
def test_instructions_of_hopper(name):
    instruction_cases.SM90[name](kernels("instructions_sm90"))


@pytest.mark.parametrize("name", instruction_cases.CLUSTER)
def test_instructions_of_clusters(name):
    instruction_cases.CLUSTER[name](kernels("instructions_cluster"))


@pytest.mark.parametrize("source", ["gemm_sm80", "gemm_sm90"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("transposed_b", [False, True])
def test_products_are_exact_at_every_repetition(source, dtype, transposed_b, sized):
    """Many tiles at once, and often: a wait or a barrier too few shows as a sum that differs."""
    if dtype == torch.int8 and transposed_b:
        pytest.skip("bytes have no MN-major form")
    library = kernels(source)
    m, n, k = sized(1000, 70), sized(520, 66), sized(1100, 330)
    a = padded(m, k, dtype, small_integers, library.device)
    b = padded(*((k, n) if transposed_b else (n, k)), dtype, small_integers, library.device)
    expected = a.cpu().double() @ (b if transposed_b else b.t()).cpu().double()
    for _ in range(sized(50, 1)):
        report, out = library.gemm(source, a, b, transposed_b)
        assert report == "" and torch.equal(out.cpu().double(), expected)
