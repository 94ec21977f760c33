"""Layer norm kernels as machine code for sm_80, sm_90 and sm_100: no spill, shared memory, 16-byte accesses."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import Record, compiled, dry_device

from fasttx.kernels import dropout_add_layer_norm as kernels
from fasttx.kernels import layer_norm

ARCHS = [80, 90, 100]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# (residual, weight and bias, dropout, dtype, columns): MiniLM's rows, BERT's, the widest block; each part alone;
# float32, whose tiles are twice as large; float16 once, it differs from bfloat16 by the conversions
CASES = [(True, True, True, BF16, n) for n in (384, 768, 4096, kernels.MAX_COLS)]
CASES += [(True, True, False, BF16, n) for n in (768, kernels.MAX_COLS)]
CASES += [(False, True, False, BF16, 768), (True, False, True, BF16, 1024), (False, False, False, BF16, 768)]
CASES += [(True, True, True, FP32, n) for n in (768, 4096, kernels.MAX_COLS)] + [(False, True, True, FP16, 1024)]
N_ROWS = 4096


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch(residual: bool, affine: bool, dropout: bool, dtype: torch.dtype, n_cols: int) -> None:
    """Queues a forward and a backward of everything that the call may want."""
    x, row = meta(N_ROWS, n_cols, dtype=dtype), meta(n_cols, dtype=dtype)
    stat, rng_state = meta(N_ROWS, dtype=FP32), meta(2, dtype=torch.int64) if dropout else None
    weight, bias = (row, row) if affine else (None, None)
    tensors, p = (x, x if residual else None, weight, bias), 0.1 if dropout else 0.0
    kernels.dropout_add_layer_norm_fwd(x, stat, stat, *tensors, None, rng_state, p, 1e-12, dtype)
    needs = (True, residual and dropout, affine, affine)
    kernels.dropout_add_layer_norm_bwd(x, x, row, row, x, *tensors, stat, stat, None, rng_state, p, *needs)


def accesses(record: Record, instruction: str) -> tuple[int, int]:
    """How many move 16 bytes, and how many fewer."""
    names = [n for n in record.instructions() if n == instruction or n.startswith(instruction + ".")]
    wide = sum(".128" in n for n in names)
    return wide, len(names) - wide


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code(arch: int) -> None:
    with dry_device(arch) as records:
        for case in CASES:
            residual, affine, dropout, dtype, n_cols = case
            rows = kernels.config("fwd", n_cols).rows  # of mean and rstd
            before = len(records)
            launch(*case)
            forward, backward, *_ = (r for r in records[before:] if r.name != "layer_norm_sum_kernel")
            for record in records[before:]:
                print(case, record, "loads", accesses(record, "LDG"), "stores", accesses(record, "STG"))
                assert record.spill_bytes == 0, f"{case}: {record}"
                assert record.shared_bytes <= 48 * 1024, f"{case}: {record}"  # several blocks fit a multiprocessor
            each = 2 * dropout  # the two words of rng_state
            loads, stores = accesses(forward, "LDG"), accesses(forward, "STG")
            # weight and bias, of one row, may be fewer than 16 bytes a thread
            assert loads[0] >= 1 + residual and loads[1] <= each + 2 * affine, (case, loads)
            assert stores[0] >= 1 and stores[1] <= 2 * rows, (case, stores)
            loads, stores = accesses(backward, "LDG"), accesses(backward, "STG")
            tile = layer_norm.backward_tile(n_cols, dtype.itemsize)
            assert loads[0] >= (2 + residual) * tile.pieces, (case, loads)
            assert loads[1] <= each + 2 * tile.rows + affine * tile.pieces, (case, loads)
            # so may be the partial sums
            assert stores[0] >= (1 + (residual and dropout)) * tile.pieces, (case, stores)
            assert stores[1] <= 2 * affine * tile.pieces, (case, stores)


# (columns, dropout, dtype) -> barriers a row of backward, and instructions an element, of the tile's loop; sm_80 to 100
LOOPS = {
    (384, True, FP16): (0, 41),
    (768, True, FP16): (0, 41),
    (768, False, FP16): (0, 26),
    (768, False, FP32): (0, 34),
    (1024, True, FP16): (0, 43),
    (2048, False, FP16): (3, 29),
    (4096, True, FP16): (3, 41),
    (kernels.MAX_COLS, False, FP16): (3, 26),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_barriers_of_backward(arch: int) -> None:
    """A warp adds up a row of up to 1,024 columns by itself; several exchange both of its sums at once."""
    for (n_cols, dropout, dtype), (barriers, most) in LOOPS.items():
        with dry_device(arch), compiled() as found:
            launch(True, True, dropout, dtype, n_cols)
        (backward,) = (kernel for kernel in found if kernel.name == "layer_norm_bwd_kernel")
        record = Record(backward.name, arch, 0, 0, 0, backward.asm["cubin"])
        names, tile = record.loop("SHFL"), layer_norm.backward_tile(n_cols, dtype.itemsize)
        elements = tile.rows * n_cols / (32 * tile.num_warps)  # of a thread, idle lanes left out
        print(arch, n_cols, dropout, dtype, len(names) / elements)
        assert sum(name.startswith("BAR.") for name in names) == barriers * tile.rows, (n_cols, dropout)
        assert 15 < len(names) / elements <= most, (n_cols, dropout)


@pytest.mark.parametrize("arch", ARCHS)
def test_odd_lengths_compile(arch: int) -> None:
    """Rows that are not aligned, which the specialisation on divisibility by 16 tells apart."""
    with dry_device(arch) as records:
        launch(True, True, True, FP16, 101)
        launch(True, True, True, FP16, 1)
    assert len(records) >= 6 and all(r.spill_bytes == 0 for r in records), "\n".join(map(str, records))
