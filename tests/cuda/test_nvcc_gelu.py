"""How many instructions GELU of csrc/common/gelu.cuh takes an element, by nvcc."""

from __future__ import annotations

import cuda_build
import pytest
from cuda import machine_code

LACKS = cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=str(LACKS)), pytest.mark.timeout(600)]

SOURCE = """
#include "common/gelu.cuh"
using namespace fasttx;
template <class F>
FTX_DEVICE void probe(float* out, const float* x, F f) {
  float z[kRowRun];
  for (int i = 0; i < kRowRun; i++) z[i] = x[threadIdx.x + 128 * i];
  f(z);
  for (int i = 0; i < kRowRun; i++) out[threadIdx.x + 128 * i] = z[i];
}
__global__ void copy(float* out, const float* x) { probe(out, x, [](float(&)[kRowRun]) {}); }
__global__ void erf_form(float* out, const float* x) { probe(out, x, [](float(&z)[kRowRun]) { gelu(false, z); }); }
__global__ void erf_slope(float* out, const float* x) {
  probe(out, x, [](float(&z)[kRowRun]) { gelu_derivative(false, z); });
}
"""
ELEMENTS = 8  # kRowRun
# docs/kernels/bias_gelu.md; exp2f guards against subnormal results by three instructions that Triton's has not
MOST = {"erf_form": 20, "erf_slope": 26}


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_instructions_an_element(arch, tmp_path):
    source = tmp_path / "gelu_probe.cu"
    source.write_text(SOURCE)
    lengths = {k.name: sum(i != "NOP" for i in k.instructions) for k in machine_code.kernels(source, arch)}
    (copy,) = (n for name, n in lengths.items() if "copy" in name)
    for part, most in MOST.items():
        (length,) = (n for name, n in lengths.items() if part in name)
        print(arch, part, (length - copy) / ELEMENTS)
        assert 8 < (length - copy) / ELEMENTS <= most
