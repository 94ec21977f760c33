"""The instructions of the emulator: each wrapper of csrc/arch bit for bit, and products made of all of them."""

from __future__ import annotations

import instruction_cases
import instruction_library
import pytest
import torch
from host_build import lacks
from instruction_library import padded, small_integers

from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(lacks() is not None, reason=str(lacks()))
VARIANTS = ("plain", "race")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source, name", [(s, n) for s, cases in instruction_cases.SOURCES.items() for n in cases])
def test_each_wrapper_does_what_its_layout_says(source, name, variant):
    library, emulator = instruction_library.for_emulator(variant, source)
    for seed in (1, 2, 3):
        emulator.configure(seed)
        instruction_cases.SOURCES[source][name](library)


# beyond a tile in each direction; less than one; more steps of k than stages, k ragged within 16 bytes
SHAPES = [(70, 66, 200), (3, 5, 7), (64, 64, 330)]
FORMS = [
    (torch.float16, False),
    (torch.float16, True),
    (torch.bfloat16, False),
    (torch.bfloat16, True),
    (torch.int8, False),
]


def operands(shape, dtype, transposed_b, draw=small_integers):
    m, n, k = shape
    b_shape = (k, n) if transposed_b else (n, k)
    return padded(m, k, dtype, draw), padded(*b_shape, dtype, draw)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", ["gemm_sm80", "gemm_sm90"])
@pytest.mark.parametrize("dtype, transposed_b", FORMS)
def test_products_are_exact_and_have_no_race(kernel, dtype, transposed_b, variant):
    library, emulator = instruction_library.for_emulator(variant, kernel)
    for seed, shape in enumerate(SHAPES, 1):
        a, b = operands(shape, dtype, transposed_b)
        emulator.configure(seed)
        report, out = library.gemm(kernel, a, b, transposed_b)
        assert report == ""
        assert torch.equal(out.long(), a.long() @ (b if transposed_b else b.t()).long())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["gemm_sm80", "gemm_sm90"])
@pytest.mark.parametrize("dtype, transposed_b", FORMS)
def test_products_of_many_seeds_and_shapes(kernel, dtype, transposed_b):
    library, emulator = instruction_library.for_emulator("race", kernel)
    for seed in range(1, 13):
        shape = tuple(int(size) for size in torch.randint(1, 200, (3,)))
        a, b = operands(shape, dtype, transposed_b)
        emulator.configure(seed)
        report, out = library.gemm(kernel, a, b, transposed_b)
        assert (report, out.long().tolist()) == ("", (a.long() @ (b if transposed_b else b.t()).long()).tolist()), shape


@pytest.mark.parametrize("kernel", ["gemm_sm80", "gemm_sm90"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_any_numbers_are_accurate(kernel, dtype):
    library, emulator = instruction_library.for_emulator("plain", kernel)
    emulator.configure(2)
    a, b = operands((40, 24, 160), dtype, False, torch.randn)
    report, out = library.gemm(kernel, a, b, False)
    assert report == ""
    assert_as_accurate(out, a.float() @ b.float().t(), a.double() @ b.double().t())


def test_int8_sums_of_the_largest_products_are_exact():
    for kernel in ("gemm_sm80", "gemm_sm90"):
        library, emulator = instruction_library.for_emulator("plain", kernel)
        emulator.configure(1)
        a, b = torch.full((64, 256), -128, dtype=torch.int8), torch.full((64, 256), -128, dtype=torch.int8)
        b[1::2] = 127
        report, out = library.gemm(kernel, a, b, False)
        assert report == "" and torch.equal(out.long(), a.long() @ b.long().t())
