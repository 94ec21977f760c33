"""How many instructions GELU takes an element on sm_90, alone and in the kernels that contain it."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl
from ahead_of_time.dry_device import code_of, compiled, dry_device
from ahead_of_time.test_dropout_add_layer_norm import meta

from fasttx.kernels import bias_gelu, bias_gelu_quantize, int8_linear
from fasttx.kernels.gelu import gelu, gelu_derivative

FP32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
COPY, GELU, DERIVATIVE = 0, 1, 2
ELEMENTS = 8  # of a thread
ARCHS = [80, 90, 100]
MOST = [(GELU, False, 17), (DERIVATIVE, False, 21), (GELU, True, 15), (DERIVATIVE, True, 22)]
"""(function, tanh, instructions an element)."""
# kernel -> elements of a thread, and what is allowed for each with erf and tanh, everything counted; bfloat16 with
# bias, sm_90 (docs/kernels/bias_gelu.md)
KERNELS = {
    "bias_gelu_fwd_kernel": (16, 27, 23),
    "bias_gelu_bwd_kernel": (8, 58, 60),
    "bias_gelu_quantize_kernel": (32, 43, 39),
}


@triton.jit
def probe(out_ptr, x_ptr, WHAT: tl.constexpr, TANH: tl.constexpr):
    at = tl.arange(0, 1024)
    z = tl.load(x_ptr + at)
    if WHAT == 1:
        z = gelu(z, TANH)
    elif WHAT == 2:
        z = gelu_derivative(z, TANH)
    tl.store(out_ptr + at, z)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_function_alone(arch: int) -> None:
    """Beyond the instructions of a copy; moves of constants count."""
    x = meta(1024, dtype=FP32)
    with dry_device(arch), compiled() as kernels:
        probe[(1,)](x, x, COPY, False, num_warps=4)
        for what, tanh, _ in MOST:
            probe[(1,)](x, x, what, tanh, num_warps=4)
    copy, *lengths = (len(code_of(kernel)) for kernel in kernels)
    for length, (what, tanh, most) in zip(lengths, MOST):
        found = (length - copy) / ELEMENTS
        print(arch, what, tanh, found)
        assert 8 < found <= most


@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
def test_whole_kernels(tanh: bool) -> None:
    x, bias, stat = meta(4096, 3072, dtype=BF16), meta(3072, dtype=BF16), meta(4096, dtype=FP32)
    with dry_device(90), compiled() as kernels:
        bias_gelu.bias_gelu_fwd(x, x, bias, None, None, 0.0, tanh)
        bias_gelu.bias_gelu_bwd(x, bias, x, x, bias, None, None, 0.0, tanh, True, True)
        bias_gelu_quantize.bias_gelu_quantize_fwd(meta(4096, 3072, dtype=INT8), stat, x, bias, None, tanh)
    found = {kernel.name: len(code_of(kernel)) for kernel in kernels if kernel.name in KERNELS}
    for name, (elements, *most) in KERNELS.items():
        print(name, found[name] / elements)
        assert found[name] <= most[tanh] * elements


def test_the_end_of_int8_linear() -> None:
    """What GELU adds to the kernel."""
    x, w, scale = meta(16384, 768, dtype=INT8), meta(3072, 768, dtype=INT8), meta(16384, dtype=FP32)
    out, bias = meta(16384, 3072, dtype=BF16), meta(3072, dtype=BF16)
    with dry_device(90, "fasttx.kernels.int8_linear.arch_of"), compiled() as kernels:
        for activation in ("none", "gelu", "gelu_tanh"):
            int8_linear.int8_linear_fwd(out, x, w, scale, scale[:3072], bias, None, activation, BF16)
    none, *lengths = (len(code_of(kernel)) for kernel in kernels)
    tile = int8_linear.config(16384, 3072, 768, 90)
    erf, tanh = ((length - none) / (tile.block_m * tile.block_n / (32 * tile.num_warps)) for length in lengths)
    print("erf", erf, "tanh", tanh)
    assert 8 < erf <= 20 and 8 < tanh <= 20
