"""Loss kernels as machine code: no spill, little shared memory, 16-byte accesses whatever the row length is."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from torch import Tensor

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("a process of its own without Triton's interpreter: make aot", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from ahead_of_time.dry_device import Record, dry_device

from fasttx.cli.check import DTYPES
from fasttx.kernels.binary_cross_entropy import binary_cross_entropy_bwd, binary_cross_entropy_fwd
from fasttx.kernels.cross_entropy import MEAN, NONE, cross_entropy_fwd
from fasttx.kernels.cross_entropy_bwd import cross_entropy_bwd
from fasttx.kernels.kl_div import kl_div_bwd, kl_div_fwd
from fasttx.kernels.linear_cross_entropy import linear_cross_entropy_bwd, linear_cross_entropy_fwd

ARCHES = (80, 90, 100)

OPTIONS = {  # probabilities, class weights, smoothing, reduction
    "plain": (False, False, 0.0, MEAN),
    "weight-smoothing": (False, True, 0.1, NONE),
    "probs": (True, False, 0.0, MEAN),
    "probs-weight-smoothing": (True, True, 0.1, NONE),
}

COLUMNS = (9, 200, 30522)
"""Labels of a tagger, the longest narrow tile, BERT's vocabulary (XLM-R's 250,002 runs the same code): of none are the
rows multiples of 16 elements, so that their starts and ends fall between 16-byte boundaries."""

CASES = [(o, dtype, arch) for o in ("plain", "probs-weight-smoothing") for dtype in ("fp32", "bf16") for arch in ARCHES]
CASES += [(o, dtype, 90) for o in ("weight-smoothing", "probs") for dtype in ("fp32", "bf16")]
CASES += [("plain", "fp16", 90)]  # fp16 differs from bf16 in its conversions alone


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def check(records: list[Record], *names: str) -> None:
    assert {r.name for r in records} >= set(names)
    for record in records:
        assert record.spill_bytes == 0, str(record)
        assert record.shared_bytes <= 16384, str(record)  # a quarter of what limits two blocks of an SM to each other


def accesses(record: Record) -> Counter[str]:
    return Counter(i for i in record.instructions() if i.startswith(("LDG", "STG")))


@pytest.mark.parametrize(("options", "dtype", "arch"), CASES, ids=lambda value: str(value))
def test_cross_entropy(options: str, dtype: str, arch: int) -> None:
    probs, weighted, smoothing, reduction = OPTIONS[options]
    n_rows, dtype = 64, DTYPES[dtype]
    for n_cols in COLUMNS:
        with dry_device(arch) as records:
            x = meta(n_rows, n_cols, dtype=dtype)
            target = meta(n_rows, n_cols, dtype=dtype) if probs else meta(n_rows, dtype=torch.int64)
            weight = meta(n_cols) if weighted else None
            loss = meta(n_rows) if reduction == NONE else meta()
            tail = (-100, smoothing, reduction)
            cross_entropy_fwd(loss, meta(n_rows), meta(), x, target, weight, *tail)
            cross_entropy_bwd(
                meta(n_rows, n_cols, dtype=dtype), meta(*loss.shape), x, target, weight, meta(n_rows), meta(), *tail
            )
        check(records)
        for record in records:
            if record.name in ("_forward_wide", "_backward_wide"):
                found = accesses(record)
                assert found["LDG.E.128"] >= (4 if probs and dtype != torch.float32 else 2), (str(record), found)
                if record.name == "_backward_wide":
                    assert found["STG.E.128"] >= 2, (str(record), found)
                # Element by element only at the edges, the label and the weights (16 a thread and pass).
                narrow = sum(n for name, n in found.items() if ".U16" in name or name == "LDG.E")
                assert narrow <= (48 if weighted else 8), (str(record), found)


@pytest.mark.parametrize("arch", ARCHES)
def test_cross_entropy_of_padded_rows(arch: int) -> None:
    """Rows of 30,522 columns that are 30,528 apart; the gradient likewise. The target's stride may differ."""
    with dry_device(arch) as records:
        x = torch.empty_strided((64, 30522), (30528, 1), dtype=torch.bfloat16, device="meta")
        for target in (meta(64, dtype=torch.int64), meta(64, 30522, dtype=torch.bfloat16)):
            cross_entropy_fwd(meta(), meta(64), meta(), x, target, None, -100, 0.0, MEAN)
            dx = torch.empty_strided((64, 30522), (30528, 1), dtype=torch.bfloat16, device="meta")
            cross_entropy_bwd(dx, meta(), x, target, None, meta(64), meta(), -100, 0.0, MEAN)
    check(records)
    for record in records:
        if record.name == "_backward_wide":
            assert accesses(record)["STG.E.128"] >= 2, str(record)


@pytest.mark.parametrize(("dtype", "arch"), [("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp32", 90), ("fp16", 90)])
def test_linear_cross_entropy(dtype: str, arch: int) -> None:
    """Logits in a workspace of padded rows, overwritten by their gradient; whole and in chunks."""
    dtype, labels = DTYPES[dtype], meta(4096, dtype=torch.int64)
    x, weight, bias = (meta(*shape, dtype=dtype) for shape in ((4096, 64), (30522, 64), (30522,)))
    with dry_device(arch) as records:
        for n_rows, class_weight, loss, tail in (
            (4096, None, meta(), (-100, 0.0, MEAN)),
            (4096, meta(30522), meta(), (-100, 0.1, MEAN)),
            (200, None, meta(200), (-100, 0.0, NONE)),
        ):
            given = (x[:n_rows], weight, bias, labels[:n_rows], class_weight)
            linear_cross_entropy_fwd(loss, meta(n_rows), meta(), *given, *tail)
            grads = (meta(n_rows, 64, dtype=dtype), meta(30522, 64, dtype=dtype), meta(30522, dtype=dtype))
            saved = (meta(n_rows), meta(), True, True, True)
            linear_cross_entropy_bwd(*grads, meta(*loss.shape), *given, *saved, *tail)
    check(records, "_forward_wide", "_backward_wide")  # the third is the same for every dtype: compiled but once
    for record in records:
        if record.name in ("_forward_wide", "_backward_wide"):
            found = accesses(record)
            assert found["LDG.E.128"] >= 2, (str(record), found)
            assert record.name == "_forward_wide" or found["STG.E.128"] >= 2, (str(record), found)


@pytest.mark.parametrize(("dtype", "arch"), [("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp32", 90), ("fp16", 90)])
def test_binary_cross_entropy(dtype: str, arch: int) -> None:
    dtype = DTYPES[dtype]
    with dry_device(arch) as records:
        x, y = meta(1001, 7, dtype=dtype), meta(1001, 7, dtype=dtype)
        for weight, pos_weight in ((None, None), (meta(1001, 7), None), (meta(7), meta(7))):
            for loss, reduction in ((meta(), MEAN), (meta(1001, 7), NONE)):
                binary_cross_entropy_fwd(loss, x, y, weight, pos_weight, reduction)
                binary_cross_entropy_bwd(
                    meta(1001, 7, dtype=dtype), meta(*loss.shape), x, y, weight, pos_weight, reduction
                )
    check(records, "_forward", "_backward")
    for record in records:
        if record.name in ("_forward", "_backward"):
            assert accesses(record)["LDG.E.128"] >= 2, (str(record), accesses(record))


@pytest.mark.parametrize(("dtype", "arch"), [("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp32", 90), ("fp16", 90)])
def test_kl_div(dtype: str, arch: int) -> None:
    dtype = DTYPES[dtype]
    with dry_device(arch) as records:
        x, target = meta(1001, 7, dtype=dtype), meta(1001, 7, dtype=dtype)
        for log_target in (False, True):
            for loss, reduction in ((meta(), MEAN), (meta(1001, 7), NONE)):
                kl_div_fwd(loss, x, target, reduction, log_target)
                kl_div_bwd(meta(1001, 7, dtype=dtype), meta(*loss.shape), target, reduction, log_target, dtype)
    check(records, "_forward", "_backward")
    for record in records:
        if record.name in ("_forward", "_backward"):
            assert accesses(record)["LDG.E.128"] >= 1, (str(record), accesses(record))
