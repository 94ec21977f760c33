"""What ptxas says is kept and looked at; a file is compiled for the archs that have its instructions."""

from __future__ import annotations

import ctypes
import re
import subprocess

import cuda_build
import pytest
from compiling import messages_of
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(600)]

# The wait for an mbarrier stands between the fence and the product.
LATE_WAIT = """
#include "arch/mbarrier.cuh"
#include "arch/wgmma.cuh"
using namespace fasttx;
__global__ void __launch_bounds__(128) products(float* out) {
  FTX_DYNAMIC_SHARED(memory, 1024);
  const uint32_t a = shared_address(memory);
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0.0f;
  for (int step = 0; step < 9; step++) {
    FENCE
    mbarrier_wait(a + 32768, step & 1);
    WAITED
    wgmma<__half, false>(d, wgmma_descriptor(a), wgmma_descriptor(a + 8192), true);
    wgmma_commit();
    wgmma_wait<0>(d);
  }
  for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = d[i];
}
"""
SPILLS = """
__global__ void __launch_bounds__(1024) sums(float* out, const float* in) {
  float x[96];
  for (int i = 0; i < 96; i++) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int round = 0; round < 9; round++) {
    _Pragma("unroll") for (int i = 0; i < 96; i++) x[i] = x[i] * x[(i + 37) % 96] + in[round];
  }
  for (int i = 0; i < 96; i++) out[i * 1024 + threadIdx.x] = x[i];
}
"""


def test_a_product_behind_a_wait_and_a_spill_are_complaints(tmp_path) -> None:
    fence = "wgmma_fence(d);"
    for name, text, complaint in (
        ("late", LATE_WAIT.replace("FENCE", fence).replace("WAITED", ""), "C75"),
        ("early", LATE_WAIT.replace("FENCE", "").replace("WAITED", fence), ""),
        ("sums", SPILLS, "spill stores"),
    ):
        source = tmp_path / f"{name}.cu"
        source.write_text(text)
        found = machine_code.complaints(source, "90a")
        assert bool(found) == bool(complaint) and all(complaint in line for line in found), (name, found)


OWN = """
#include "../arch/absent.h"
struct Params { float* out; };
#ifdef FASTTX_ABSENT_ARCH
namespace fasttx { FTX_ABSENT(increase_sm90, Params) }
#else
#include "../arch/launch.cuh"
__global__ void __launch_bounds__(128) kernel(Params p) {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 64;");
  p.out[0] = 1.0f;
}
namespace fasttx {
void increase_sm90(const Params& p, Stream stream) {
  launch("increase_sm90", "", kernel, dim3(1), dim3(128), stream, p);
}
}
#endif
extern "C" __attribute__((visibility("default"))) const char* run() {
  static std::string said;
  try {
    fasttx::increase_sm90(Params{nullptr}, nullptr);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  return said.c_str();
}
"""


def test_a_file_is_compiled_for_the_archs_in_its_name(tmp_path) -> None:
    csrc = tmp_path / "csrc"
    (csrc / "x").mkdir(parents=True)
    for folder in ("arch", "common"):
        (csrc / folder).symlink_to(cuda_build.CSRC / folder)
    source = csrc / "x" / "increase_sm90.cu"
    source.write_text("#include <string>\n" + OWN)
    toolkit = cuda_build.find_toolkit()
    for names, said in ((["80", "ptx90"], "compiled without 90a"), (["80", "90a"], "increase_sm90 of ")):
        made = cuda_build.kernel_job(toolkit, source, names).made(tmp_path)
        assert set(re.findall("for '(sm_\\w+)'", messages_of(made).read_text())) == (
            {"sm_90a"} & {f"sm_{n}" for n in names}
        )
        library = tmp_path / f"{names[1]}.so"
        link = [str(cuda_build.compiler()), "-shared", str(made), str(toolkit.cudart), "-ldl", "-lrt", "-lpthread"]
        subprocess.run([*link, "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).run
        run.restype = ctypes.c_char_p
        assert said in run().decode()


GIVEN = """
__global__ void __launch_bounds__(384, 1) given(float* out, const float* in) {
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    out[threadIdx.x] = in[threadIdx.x];
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    float x[200];
    _Pragma("unroll") for (int i = 0; i < 200; i++) x[i] = in[i * 384 + threadIdx.x];
    asm volatile("" ::: "memory");
    _Pragma("unroll") for (int i = 0; i < 200; i++) out[i * 384 + threadIdx.x] = x[i] * x[(i + 99) % 200];
  }
}
"""


def test_the_registers_that_are_really_used_are_those_of_setmaxnreg(tmp_path) -> None:
    source = tmp_path / "given.cu"
    source.write_text(GIVEN)
    (kernel,) = machine_code.kernels(source, "90a")
    assert kernel.registers < kernel.highest_register < kernel.most_registers == 240
