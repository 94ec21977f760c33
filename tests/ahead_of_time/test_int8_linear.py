"""Int8 kernels as machine code for sm_80, sm_90 and sm_100: no spill, shared memory, tensor cores, wide loads."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import SHARED_BYTES, Record, compiled, dry_device, layouts_of_sums

from fasttx.kernels import add_layer_norm_quantize as norm_quantize
from fasttx.kernels import bias_gelu_quantize as gelu_quantize
from fasttx.kernels import dropout_add_layer_norm as norm
from fasttx.kernels import int8_linear as linear
from fasttx.kernels import quantize_per_token as quantize

ARCHS = [80, 90, 100]
ELEMENTS = 32  # of a thread of quantize_per_token and bias_gelu_quantize
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
ARCH_OF = "fasttx.kernels.int8_linear.arch_of"
# (rows, in_features, out_features, bias, residual, activation, dtype): BERT's layers at every tile, each part alone
LINEAR = [(n_rows, 768, 3072, True, False, "gelu", BF16) for n_rows in (16384, 400, 200, 1)]
LINEAR += [(n_rows, 3072, 768, True, True, "none", BF16) for n_rows in (16384, 512)]
LINEAR += [(16384, 768, 768, False, False, "none", FP16), (16384, 1024, 4096, True, True, "gelu_tanh", FP32)]
# masked in k, without and with aligned rows
LINEAR += [(16384, 700, 768, True, False, "gelu", BF16), (16384, 720, 768, True, False, "gelu", BF16)]


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_linear(
    n_rows: int, n_in: int, n_out: int, bias: bool, residual: bool, activation: str, dtype: torch.dtype
) -> None:
    out = meta(n_rows, n_out, dtype=dtype)
    linear.int8_linear_fwd(
        out,
        meta(n_rows, n_in, dtype=torch.int8),
        meta(n_out, n_in, dtype=torch.int8),
        meta(n_rows, dtype=FP32),
        meta(n_out, dtype=FP32),
        meta(n_out, dtype=dtype) if bias else None,
        out if residual else None,
        activation,
        dtype,
    )


def products(record: Record, arch: int) -> list[str]:
    """The tensor-core instructions on int8: warpgroup-wide ones on sm_90."""
    wanted = "IGMMA" if arch == 90 else "IMMA"
    return [name for name in record.instructions() if name.startswith(wanted)]


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_of_int8_linear(arch: int) -> None:
    with dry_device(arch, ARCH_OF) as records:
        for case in LINEAR:
            before = len(records)
            launch_linear(*case)
            if len(records) == before:
                continue  # the same kernel as of another number of rows
            (record,) = records[before:]
            names = record.instructions()
            print(case, record, len(products(record, arch)), "products")
            assert record.spill_bytes == 0, f"{case}: {record}"
            assert record.shared_bytes <= SHARED_BYTES[arch], f"{case}: {record}"
            assert products(record, arch), f"{case}: no product of int8 on the tensor cores"
            if case[1] % 16 == 0:
                copies = [n for n in names if n.startswith("LDGSTS")]
                assert copies and all(".128" in n for n in copies), f"{case}: {sorted(set(copies))}"
        tiles = {linear.config(n_rows, n_out, n_in, arch) for n_rows, n_in, n_out, *_ in LINEAR}
    assert tiles == {*linear.TABLE[arch], linear.UNALIGNED}, "a tile of the table is not compiled"


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_of_quantize_per_token(arch: int) -> None:
    with dry_device(arch) as records:
        for n_cols, dtype in [
            (384, BF16),
            (768, BF16),
            (768, FP32),
            (1024, FP16),
            (4096, BF16),
            (5008, BF16),
            (quantize.MAX_COLS, BF16),
            (quantize.MAX_COLS, FP32),
            (101, FP16),
        ]:
            for static in (False, True):
                x, x_q = meta(4096, n_cols, dtype=dtype), meta(4096, n_cols, dtype=torch.int8)
                before = len(records)
                scale = meta(dtype=FP32) if static else None
                quantize.quantize_per_token_fwd(x_q, meta(4096, dtype=FP32), x, scale)
                for record in records[before:]:
                    names = record.instructions()
                    print(n_cols, dtype, record)
                    assert record.spill_bytes == 0, record
                    assert record.shared_bytes <= 48 * 1024, record
                    wide = [n for n in names if n.startswith("LDG") and ".128" in n]
                    assert wide or n_cols % 8, f"{n_cols}, {dtype}: no 16-byte load"
                    # x * inverse is rounded before the sum that rounds it to an integer: a fused one would not
                    adds = sum(2 if n.startswith("FADD2") else n.startswith("FADD") for n in names)
                    assert adds >= 2 * ELEMENTS, f"{adds} sums for {ELEMENTS} elements a thread: {record}"
    assert len(records) >= 16


def sums(record: Record) -> int:
    """float32 sums, packed pairs counted twice; a product and a sum made one are none."""
    names = record.instructions()
    return sum(2 if n.startswith("FADD2") else n.startswith("FADD") for n in names)


def hold_to_the_machine(record: Record, wide: bool) -> None:
    print(record, sums(record), "sums")
    assert record.spill_bytes == 0, record
    assert record.shared_bytes <= 48 * 1024, record
    assert not wide or any(n.startswith("LDG") and ".128" in n for n in record.instructions()), record


# x, residual, out: rows of encoders, the longest, float32, one wider than the others, no run of 16 bytes
NORMS = [(BF16, BF16, BF16, n) for n in (384, 768, 1024, 4096, norm.MAX_COLS, 101)]
NORMS += [(FP32, FP32, FP32, n) for n in (1024, norm.MAX_COLS)]
NORMS += [(BF16, FP32, FP32, 768), (FP16, None, FP32, 768), (FP32, BF16, BF16, 1024)]


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_of_add_layer_norm_quantize(arch: int) -> None:
    """Also that the sums are those of dropout_add_layer_norm, as many and in the same order, by tile and layout."""
    with dry_device(arch) as records, compiled() as kernels:
        for x_dtype, residual_dtype, out_dtype, n_cols in NORMS:
            x, out = (meta(4096, n_cols, dtype=dtype) for dtype in (x_dtype, out_dtype))
            residual = None if residual_dtype is None else meta(4096, n_cols, dtype=residual_dtype)
            row, number = meta(n_cols, dtype=x_dtype), meta(4096, dtype=FP32)
            bias = meta(n_cols, dtype=BF16 if x_dtype == FP32 else FP32)  # no other test compiles the norm for it
            x_q = meta(4096, n_cols, dtype=torch.int8)
            kernels.clear()
            given = x, residual, row, bias
            norm.dropout_add_layer_norm_fwd(out, number, number, *given, None, None, 0.0, 1e-5, out_dtype)
            for scale in (None, meta(dtype=FP32)):
                norm_quantize.add_layer_norm_quantize_fwd(out, x_q, number, *given, scale, 1e-5, out_dtype)
            wanted = layouts_of_sums(kernels[0])
            assert len(wanted) == 3  # of z, of d and of d^2
            for kernel in kernels[1:]:
                assert layouts_of_sums(kernel)[:3] == wanted, (n_cols, x_dtype, residual_dtype, out_dtype)
            by_code = {record.cubin: record for record in records}
            plain, *fused = (by_code[kernel.asm["cubin"]] for kernel in kernels)
            tile = norm.config("fwd", n_cols)
            elements = tile.rows * tile.block_n // (32 * tile.num_warps)
            for record in fused:
                hold_to_the_machine(record, n_cols % 8 == 0)
                # two more than the norm has, which round to integers; mean + delta is not wanted here
                enough = sums(plain) + 2 * elements - tile.rows
                if arch < 100:  # there ptxas fuses packed pairs though both say .rn, and not the same ones
                    assert enough <= sums(record) <= sums(plain) + 2 * elements + 4, f"{record}: {sums(plain)} in norm"
    assert len(records) >= 2 * len(NORMS)  # the same kernel serves several lengths


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code_of_bias_gelu_quantize(arch: int) -> None:
    with dry_device(arch) as records:
        for n_cols, dtype in [
            (1536, BF16),
            (3072, BF16),
            (4096, BF16),
            (4096, FP16),
            (3072, FP32),
            (quantize.MAX_COLS, BF16),
            (quantize.MAX_COLS, FP32),
            (101, FP16),
        ]:
            for tanh, scale, with_bias in [(False, None, True), (True, None, True), (False, meta(dtype=FP32), False)]:
                x, x_q = meta(4096, n_cols, dtype=dtype), meta(4096, n_cols, dtype=torch.int8)
                before = len(records)
                bias = meta(n_cols, dtype=dtype) if with_bias else None
                gelu_quantize.bias_gelu_quantize_fwd(x_q, meta(4096, dtype=FP32), x, bias, scale, tanh)
                for record in records[before:]:
                    hold_to_the_machine(record, n_cols % 8 == 0)
                    # of bias, in GELU (1 - Q or 1 + e), and two that round to integers, which a product that is fused
                    # into the first would make one
                    assert sums(record) >= (with_bias + 1 + 2) * ELEMENTS, record
    assert len(records) >= 16
