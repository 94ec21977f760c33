"""Softmax kernels as machine code for sm_80, sm_90 and sm_100: no spill, shared memory, 16-byte accesses. `make aot`
runs them.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import SHARED_BYTES, Record, dry_device

from fasttx.kernels import softmax as kernels

ARCHS = [80, 90, 100]
HALF = torch.float16
CALLS = ["fwd", "fwd-log", "fwd-mask", "fwd-bias-dropout", "bwd", "bwd-log", "bwd-bias-dropout"]


def longest(call: str) -> int:
    """The longest row in one block: the tile with the most registers a thread."""
    return kernels.TABLE[call[:3] + ("_dropout" if "dropout" in call else "")][1]


# Each kernel at each kind of tile: several rows; the widest block; several blocks (whose code does not depend on the
# length). In float16; float32 where its tiles, twice as large, are held; bfloat16 once, it differs from float16 by the
# conversions.
CONFIGURATIONS = [(call, HALF, n) for call in CALLS for n in (128, longest(call), 65536)]
CONFIGURATIONS += [
    (call, torch.float32, longest(call)) for call in ("fwd", "fwd-mask", "bwd", "bwd-log", "bwd-bias-dropout")
]
CONFIGURATIONS += [("fwd", torch.bfloat16, 128), ("bwd-bias-dropout", torch.bfloat16, 65536)]


def launch(call: str, n_cols: int, dtype: torch.dtype) -> None:
    """Queues one launch of the op on meta tensors, with shapes and alignments as BERT has them."""
    x = torch.empty(8, 12, 64, n_cols, dtype=dtype, device="meta")
    out, rng_state = torch.empty_like(x), torch.empty(2, dtype=torch.int64, device="meta")
    keys = torch.empty(8, 1, 1, n_cols, dtype=torch.bool, device="meta")
    bias = torch.empty(1, 12, 64, n_cols, dtype=dtype, device="meta")
    if call == "fwd":
        kernels.softmax_fwd(out, x, None, None, 1.0, 0.0, False)
    elif call == "fwd-log":
        kernels.softmax_fwd(out, x, None, None, 1.0, 0.0, True)
    elif call == "fwd-mask":
        kernels.softmax_fwd(out, x, keys, None, 0.125, 0.0, False)
    elif call == "fwd-bias-dropout":
        kernels.softmax_fwd(out, x, bias, rng_state, 0.125, 0.1, False)
    elif call == "bwd":
        kernels.softmax_bwd(out, x, x, None, None, 1.0, 0.0, False)
    elif call == "bwd-log":
        kernels.softmax_bwd(out, x, x, keys, None, 1.0, 0.0, True)
    elif call == "bwd-bias-dropout":
        kernels.softmax_bwd(out, x, x, bias, rng_state, 0.125, 0.1, False)
    else:
        raise ValueError(call)


def wide_and_narrow(record: Record, instruction: str) -> tuple[int, int]:
    """How many of the accesses move 16 bytes, and how many fewer."""
    names = [n for n in record.instructions() if n == instruction or n.startswith(instruction + ".")]
    wide = sum(".128" in n for n in names)
    return wide, len(names) - wide


@pytest.mark.parametrize("arch", ARCHS)
def test_machine_code(arch: int) -> None:
    with dry_device(arch) as records:
        for call, dtype, n_cols in CONFIGURATIONS:
            before = len(records)
            launch(call, n_cols, dtype)
            assert len(records) == before + 1, f"{call} {dtype} {n_cols} compiled nothing: is it listed twice?"
            record = records[-1]
            what = f"{call} {dtype} {n_cols}: {record}"
            assert record.spill_bytes == 0, what
            # several blocks fit a multiprocessor
            assert record.shared_bytes <= min(SHARED_BYTES[arch], 48 * 1024), what
            loads, stores = wide_and_narrow(record, "LDG"), wide_and_narrow(record, "STG")
            assert loads[0] >= (2 if call.startswith("bwd") else 1) and stores[0] >= 1 and stores[1] == 0, (
                what,
                loads,
                stores,
            )
            # only the two words of rng_state are narrower, in each of the places that draw
            places = 2 if kernels.config(call[:3] + "_dropout", n_cols).multi else 1
            assert loads[1] <= (2 * places if "dropout" in call else 0), (what, loads)
            print(what, "loads", loads, "stores", stores)


@pytest.mark.parametrize("arch", ARCHS)
def test_odd_lengths_compile(arch: int) -> None:
    """Rows that are not aligned, which the specialisation on divisibility by 16 tells apart."""
    with dry_device(arch) as records:
        for call in ("fwd-bias-dropout", "bwd-bias-dropout", "bwd"):
            launch(call, 101, torch.float16)
    assert len(records) == 3 and all(r.spill_bytes == 0 for r in records), "\n".join(map(str, records))


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_that_begin_between_vectors(arch: int) -> None:
    """A vocabulary of 30,522 in one block (forward), and in several: all but the tile at both ends moves 16 bytes."""
    with dry_device(arch) as records:
        for call in ("fwd", "fwd-log", "bwd", "bwd-log"):
            for n_cols, dtype in ((30522, HALF), (50265, HALF), (50265, torch.float32)):
                before = len(records)
                launch(call, n_cols, dtype)
                for record in records[before:]:
                    assert "unaligned" in record.name and record.spill_bytes == 0, record
                    loads, stores = wide_and_narrow(record, "LDG"), wide_and_narrow(record, "STG")
                    print(call, n_cols, dtype, record, loads, stores)
                    assert loads[0] >= 4 and loads[1] <= 1 + call.startswith("bwd"), (record, loads)
                    assert stores[0] >= 4 and stores[1] <= 1, (record, stores)
    assert len(records) >= 8
