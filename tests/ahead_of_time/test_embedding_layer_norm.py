"""Embedding kernels as machine code for sm_80, sm_90 and sm_100: no spill, shared memory, 16-byte accesses."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import dry_device
from ahead_of_time.test_dropout_add_layer_norm import accesses

from fasttx.kernels import embedding_layer_norm as kernels

ARCHS = [80, 90, 100]
FP32, FP16, BF16, INT64 = torch.float32, torch.float16, torch.bfloat16, torch.int64
N_ROWS, VOCAB = 4096, 30522
# (rows of the type table, dropout, dtype, columns): MiniLM's rows, BERT's, the widest block; RoBERTa's
# one type, and no type; float32, whose tiles are twice as large; float16 once
CASES = [(2, True, BF16, n) for n in (384, 768, kernels.MAX_COLS)] + [(2, False, BF16, 768)]
CASES += [(1, True, BF16, 768), (0, False, BF16, 128), (2, True, FP32, 768), (2, True, FP32, kernels.MAX_COLS)]
CASES += [(2, True, FP16, 1024)]


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launch(types: int, dropout: bool, dtype: torch.dtype, n_cols: int, n_rows: int = N_ROWS) -> None:
    """Queues a forward and a backward of everything."""
    ids, stat = meta(n_rows, dtype=INT64), meta(n_rows, dtype=FP32)
    out, row, rng_state = meta(n_rows, n_cols, dtype=dtype), meta(n_cols, dtype=dtype), meta(2, dtype=INT64)
    token_type = meta(types, n_cols, dtype=dtype) if types else None
    tables = (
        ids,
        meta(VOCAB, n_cols, dtype=dtype),
        ids[: n_rows // 8],
        meta(512, n_cols, dtype=dtype),
        ids if types else None,
        token_type,
    )
    mask = (None, rng_state, 0.1) if dropout else (None, None, 0.0)
    kernels.embedding_layer_norm_fwd(out, stat, stat, *tables, row, row, *mask, 1e-12, dtype)
    dtoken_type = row if token_type is None else token_type
    needs = (True, types > 0, True, True)
    kernels.embedding_layer_norm_bwd(out, dtoken_type, row, row, out, *tables, row, row, stat, stat, *mask, *needs)


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code(arch: int) -> None:
    spilled = []
    with dry_device(arch) as records:
        for case in CASES:
            types, dropout, _, n_cols = case
            rows = kernels.config("fwd", n_cols).rows
            before = len(records)
            launch(*case)
            forward, backward, *_ = (r for r in records[before:] if r.name != "layer_norm_sum_kernel")
            for record in records[before:]:
                print(case, record, "loads", accesses(record, "LDG"), "stores", accesses(record, "STG"))
                spilled += [f"{case}: {record}"] if record.spill_bytes else []
                assert record.shared_bytes <= 48 * 1024, f"{case}: {record}"  # several blocks fit a multiprocessor
            tables, row = 2 + (types > 0), 4 * rows + 2  # ids of each row, and the two words of rng_state
            loads, stores = accesses(forward, "LDG"), accesses(forward, "STG")
            # weight and bias, of one row, may be fewer than 16 bytes a thread
            assert loads[0] >= tables and loads[1] <= tables * row + 2, (case, loads)
            assert stores[0] >= 1 and stores[1] <= 2 * rows, (case, stores)
            loads, stores = accesses(backward, "LDG"), accesses(backward, "STG")
            assert loads[0] >= tables + 1, (case, loads)
            assert stores[0] >= 1 and stores[1] <= 2 + types, (case, stores)
    assert not spilled, "\n".join(spilled)


@pytest.mark.parametrize("arch", ARCHS)
def test_odd_lengths_compile(arch: int) -> None:
    """Rows that are not aligned, which the specialisation on divisibility by 16 tells apart."""
    with dry_device(arch) as records:
        launch(2, True, FP16, 101, 104)
        launch(1, True, FP16, 30, 8)
    assert len(records) >= 6 and all(r.spill_bytes == 0 for r in records), "\n".join(map(str, records))
