"""What nvcc makes of csrc/arch: the kernels of tests/emulator have the instructions that they are meant to have."""

from __future__ import annotations

import cuda_build
import instruction_library
import pytest
import torch
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(600)]

# of a mangled name: what its instructions begin with
COPIES_SM80 = ("LDGSTS.E.BYPASS.128.ZFILL", "LDGDEPBAR", "DEPBAR.LE")
COPIES_SM90 = ("UTMALDG.4D", "SYNCS.PHASECHK", "SYNCS.ARRIVE", "FENCE.VIEW.ASYNC")
GEMM_SM80 = {
    "I6__halfLb0E": ("HMMA.16816.F32", "LDSM.16.M88.4", *COPIES_SM80),
    "I6__halfLb1E": ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", *COPIES_SM80),
    "I13__nv_bfloat16Lb0E": ("HMMA.16816.F32.BF16", "LDSM.16.M88.4", *COPIES_SM80),
    "I13__nv_bfloat16Lb1E": ("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDSM.16.MT88.4", *COPIES_SM80),
    "IaLb0E": ("IMMA.16832.S8.S8", "LDSM.16.M88.4", *COPIES_SM80),
}
WGMMA = {
    "I6__halfLb0E": ("HGMMA.64x64x16.F32",),
    "I6__halfLb1E": ("HGMMA.64x64x16.F32",),
    "I13__nv_bfloat16Lb0E": ("HGMMA.64x64x16.F32.BF16",),
    "I13__nv_bfloat16Lb1E": ("HGMMA.64x64x16.F32.BF16",),
    "IaLb0E": ("IGMMA.64x64x32.S8.S8",),
}
# of instruction_cases: type, form by its number, and the columns
WIDE = {
    f"wide_kernelI{name}Li{n}ELNS_4FormE{form}E": (f"{kind[0]}GMMA.64x{n}{kind[1:]}",)
    for name, kind, form, sizes in (
        ("13__nv_bfloat16", "Hx16.F32.BF16", 0, (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)),
        ("6__half", "Hx16.F32", 1, (8, 64, 96, 128, 256)),
        ("6__half", "Hx16.F32", 2, (64, 128)),
        ("13__nv_bfloat16", "Hx16.F32.BF16", 3, (64, 128)),
        ("6__half", "Hx16.F32", 4, (32, 64, 96, 128)),
        ("a", "Ix32.S8.S8", 0, (128, 256)),
        ("a", "Ix32.S8.S8", 3, (64,)),
    )
    for n in sizes
}
KERNELS = {
    ("gemm_sm80", "80"): {f"gemm_sm80_kernel{name}": found for name, found in GEMM_SM80.items()},
    ("gemm_sm80", "90a"): {f"gemm_sm80_kernel{name}": found for name, found in GEMM_SM80.items()},
    ("gemm_sm90", "90a"): {f"gemm_sm90_kernel{name}": (*found, *COPIES_SM90) for name, found in WGMMA.items()},
    ("instructions_sm80", "80"): {
        "mma_kernelI6__half": ("HMMA.16816.F32",),
        "mma_kernelI13__nv_bfloat16": ("HMMA.16816.F32.BF16",),
        "mma_kernelIa": ("IMMA.16832.S8.S8",),
        "ldmatrix_kernelILb0E": ("LDSM.16.M88.4",),
        "ldmatrix_kernelILb1E": ("LDSM.16.MT88.4",),
        "cp_async_kernel": COPIES_SM80,
        "exp2_kernel": ("MUFU.EX2",),
        "permute_kernel": ("PRMT",),
        "widen_kernel": ("LOP3.LUT",),
        "uniform_kernel": ("SHFL.IDX",),
        "named_barrier_kernel": ("BAR.SYNC", "BAR.ARV"),
    },
    ("instructions_sm90", "90a"): {
        **{f"wgmma_kernel{name}": (*found, "FENCE.VIEW.ASYNC") for name, found in WGMMA.items()},
        **WIDE,
        "pipeline_kernel": ("HGMMA.64x64x16.F32", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR"),
        "registers_kernel": ("USETMAXREG.DEALLOC", "USETMAXREG.TRY_ALLOC"),
        "tma_kernel": COPIES_SM90,
        "mbarrier_kernel": ("SYNCS.PHASECHK", "SYNCS.ARRIVE"),
    },
    **{
        ("instructions_cluster", arch): {
            "cluster_kernel": ("UCGABAR_ARV", "UCGABAR_WAIT", "ST.E"),  # the last one a store to another block
        }
        for arch in ("90a", "100", "120")
    },
}

WITHOUT = {"exp2_kernel": ("FMUL", "FSETP"), "widen_kernel": ("PRMT", "IMAD.U32")}
"""What the plain functions of CUDA take besides, and these kernels have not."""


@pytest.mark.parametrize("source, arch", KERNELS)
def test_kernels_have_their_instructions_and_no_spill(source, arch):
    assert machine_code.complaints(instruction_library.SOURCES[source], arch) == []
    found = machine_code.kernels(instruction_library.SOURCES[source], arch)
    expected = KERNELS[source, arch]
    assert len(found) == len(expected)
    for name, instructions in expected.items():
        (kernel,) = [k for k in found if name in k.name]
        assert kernel.stack_bytes == 0, f"{name} spills"
        for instruction in instructions:
            assert any(i.startswith(instruction) for i in kernel.instructions), f"{name} has no {instruction}"
        for instruction in next((without for part, without in WITHOUT.items() if part in name), ()):
            assert not any(i.startswith(instruction) for i in kernel.instructions), f"{name} has {instruction}"
        products = sum("GMMA" in i for i in kernel.instructions)
        waits = sum(i.startswith("WARPGROUP.DEPBAR") for i in kernel.instructions)
        in_groups = products == 4 * waits or (name == "pipeline_kernel" and waits == 2)
        assert in_groups, f"{name}: the compiler waits between products of a group"
        assert kernel.highest_register < kernel.most_registers, f"{name} uses more registers than it has"


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU tests/gpu runs them")
@pytest.mark.parametrize("source, arch", [("instructions_sm80", "80"), ("instructions_sm90", "90a")])
def test_the_library_for_a_gpu_loads_here_and_says_what_is_missing(source, arch):
    library = instruction_library.for_gpu(arch, source)
    library.device = torch.device("cpu")
    word = torch.zeros(64, 64, dtype=torch.int32)
    if source == "instructions_sm80":
        report = library.call("run_mma", word, {"a": word, "b": word}, 0)
        assert report.startswith("instruction of  on device 0, sm_") and "cudaError" in report
    else:
        report = library.call("run_tma", word, {"a": word}, 2, 64, 64, 64, 0, 0)
        assert "driver" in report
