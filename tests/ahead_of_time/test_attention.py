"""The attention kernels compile to machine code for every listed configuration: no spill, tensor cores in use.

What is launched is what a caller's launch would be; only the tensors are meta. FASTTX_AOT_REPORT=path appends every
record to a file, the source of the table in docs/kernels/attention.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("compiles without the interpreter: run with FASTTX_AOT=1, in its own process", allow_module_level=True)

from ahead_of_time.dry_device import SHARED_BYTES, Record, dry_device

from fasttx.kernels.attention import attention_fwd
from fasttx.kernels.attention_bwd import attention_bwd

ARCH_FUNCTIONS = ("fasttx.kernels.attention.arch_of", "fasttx.kernels.attention_bwd.arch_of")
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


@dataclass(frozen=True)
class Case:
    """One kind of call; `deterministic` launches the dq kernel and dkdv without dq, a short length the single pass."""

    name: str
    length: int = 512
    dtype: torch.dtype = torch.bfloat16
    dropout_p: float = 0.1
    mask: str = ""
    window: tuple[int, int] = (-1, -1)
    varlen: bool = False
    deterministic: bool = False
    group: int = 1
    archs: tuple[int, ...] = (80, 90, 100)


CASES = (
    Case("plain", dropout_p=0.0),
    Case("packed, dropout", varlen=True),
    Case("packed, deterministic", varlen=True, deterministic=True, archs=(90,)),
    Case("key mask, dropout", dtype=torch.float16, mask="key"),
    Case("full mask, causal, packed, deterministic", mask="full", window=(-1, 0), varlen=True, deterministic=True),
    Case("full mask, window, dropout", dtype=torch.float16, mask="full", window=(64, 64), archs=(90,)),
    Case("short, dropout", length=128),
    Case("shared bias, packed", mask="shared", varlen=True, dropout_p=0.0),
    Case("bias of keys", mask="of keys"),
)


def launch(case: Case, arch: int, head_dim: int) -> list[Record]:
    batch, heads, n = 4, 12, case.length
    lead = (batch * n,) if case.varlen else (batch, n)

    def meta(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    q, out, dout, dq = (meta(*lead, heads, head_dim) for _ in range(4))
    k, v, dk, dv = (meta(*lead, heads // case.group, head_dim) for _ in range(4))
    lse = meta(*((heads, batch * n) if case.varlen else (batch, heads, n)), dtype=torch.float32)
    cu = meta(batch + 1, dtype=torch.int32) if case.varlen else None
    bias = {
        "": None,
        "key": meta(batch, 1, 1, n, dtype=torch.bool),
        "full": meta(batch, heads, n, n),
        "shared": meta(1, heads, n, n, dtype=torch.float32),
        "of keys": meta(batch, 1, 1, n),
    }[case.mask]
    rng_state = meta(2, dtype=torch.int64) if case.dropout_p else None
    args = (bias, None, cu, cu, rng_state, n, n, head_dim**-0.5, case.dropout_p, *case.window)
    needs = case.mask in ("full", "shared", "of keys")
    dbias = meta(*bias.shape) if needs else meta(0)
    with dry_device(arch, *ARCH_FUNCTIONS) as records:
        attention_fwd(out, lse, q, k, v, *args)
        attention_bwd(dq, dk, dv, dbias, dout, q, k, v, out, lse, *args, case.deterministic, needs)
    return records


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_listed_configurations(arch: int, head_dim: int) -> None:
    wrong, seen = [], 0
    cases = [case for case in CASES if arch in case.archs]
    for case in cases:
        for record in launch(case, arch, head_dim):
            seen += 1
            line = f"head_dim {head_dim}, {case.name}: {record}"
            if path := os.environ.get("FASTTX_AOT_REPORT"):
                with open(path, "a") as report:
                    report.write(line + "\n")
            if record.spill_bytes:
                wrong.append(f"{line}: spills")
            if record.shared_bytes > SHARED_BYTES[arch]:
                wrong.append(f"{line}: more shared memory than the arch has")
            matrix = MATRIX_INSTRUCTION[arch]
            if "delta" not in record.name and not any(i.startswith(matrix) for i in record.instructions()):
                wrong.append(f"{line}: no {matrix}")
    assert not wrong, "\n".join(wrong)
    assert seen >= 2 * len(cases) - 2  # launches of different cases may share a kernel, but most have their own


@pytest.mark.parametrize(
    ("case", "head_dim"),
    [
        (Case("fp32", dtype=torch.float32, length=100), 64),
        (Case("fp32, deterministic", dtype=torch.float32, deterministic=True, mask="full"), 100),
        (Case("widest head", deterministic=True), 256),
        (Case("grouped heads", group=4), 48),
    ],
    ids=lambda x: x.name if isinstance(x, Case) else "",
)
def test_other_shapes_compile(case: Case, head_dim: int) -> None:
    """Not tuned and not gated against spilling: they compile and fit."""
    for record in launch(case, 90, head_dim):
        assert record.shared_bytes <= SHARED_BYTES[90], str(record)


def test_the_gate_can_fail() -> None:
    """A tile that is known to spill is reported as spilling."""
    import fasttx.kernels.attention as module
    from fasttx.kernels.attention_config import Config

    before = module.config
    module.config = lambda *args, **kwargs: Config(128, 128, 4, 2)
    try:
        records = launch(Case("too large", varlen=True, mask="full"), 90, 128)
    finally:
        module.config = before
    assert records[0].spill_bytes > 0
