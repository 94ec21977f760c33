"""GELU kernels as machine code for sm_80, sm_90 and sm_100: no spill, shared memory, registers, 16-byte accesses."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import dry_device
from ahead_of_time.test_dropout_add_layer_norm import accesses, meta

from fasttx.kernels import bias_gelu as kernels

ARCHS = [80, 90, 100]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# (bias's dtype, tanh, dropout, dtype): a BERT layer in training and under autocast, whose bias is float32; each
# approximation with and without dropout; plain GELU; float32, whose tiles are twice as large; float16 once, it differs
# from bfloat16 by the conversions
CASES = [(BF16, tanh, dropout, BF16) for tanh in (False, True) for dropout in (False, True)]
CASES += [(FP32, False, False, BF16), (None, False, False, BF16), (None, True, False, FP32)]
CASES += [(FP32, False, True, FP32), (FP16, True, True, FP16)]
N_ROWS, N_COLS = 4096, 3072


def launch(bias_dtype: torch.dtype | None, tanh: bool, dropout: bool, dtype: torch.dtype, n_cols: int = N_COLS) -> None:
    """Queues a forward and a backward of everything that the call may want."""
    x = meta(N_ROWS, n_cols, dtype=dtype)
    bias = None if bias_dtype is None else meta(n_cols, dtype=bias_dtype)
    rng_state, p = (meta(2, dtype=torch.int64), 0.1) if dropout else (None, 0.0)
    kernels.bias_gelu_fwd(x, x, bias, None, rng_state, p, tanh)
    kernels.bias_gelu_bwd(x, bias, x, x, bias, None, rng_state, p, tanh, True, bias is not None)


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code(arch: int) -> None:
    with dry_device(arch) as records:
        for case in CASES:
            bias_dtype, _, dropout, dtype = case
            before = len(records)
            launch(*case)
            forward, backward, *_ = (r for r in records[before:] if r.name != "layer_norm_sum_kernel")
            for record in records[before:]:
                print(case, record, "loads", accesses(record, "LDG"), "stores", accesses(record, "STG"))
                assert record.spill_bytes == 0, f"{case}: {record}"
                assert record.shared_bytes <= 16 * 1024, f"{case}: {record}"  # as many blocks as the registers hold
            # PROGRAMS supposes that an H100's multiprocessor holds eight of them, in halves
            threads = 32 * kernels.config("bwd", N_COLS).num_warps
            assert arch == 80 or dtype == FP32 or backward.registers * threads * 8 <= 65536, f"{case}: {backward}"
            each = 2 * dropout  # the two words of rng_state
            row = bias_dtype is not None  # bias and the partial sums, of one row, are fewer than 16 bytes a thread
            loads, stores = accesses(forward, "LDG"), accesses(forward, "STG")
            assert loads[0] >= 1 and loads[1] <= each + row, (case, loads)
            assert stores[0] >= 1 and stores[1] == 0, (case, stores)
            loads, stores = accesses(backward, "LDG"), accesses(backward, "STG")
            assert loads[0] >= 2 and loads[1] <= each + row, (case, loads)
            assert stores[0] >= 1 and stores[1] <= row, (case, stores)


@pytest.mark.parametrize("arch", ARCHS)
def test_odd_lengths_compile(arch: int) -> None:
    """Rows that are not aligned, which the specialisation on divisibility by 16 tells apart."""
    with dry_device(arch) as records:
        launch(FP16, False, True, FP16, 101)
        launch(FP32, True, True, FP16, 1)
    assert len(records) >= 5 and all(r.spill_bytes == 0 for r in records), "\n".join(map(str, records))
