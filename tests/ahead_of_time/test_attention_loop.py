"""What one iteration of attention's backward costs: instructions, barriers, copies ahead of the loop.

The limits are what was reached by Triton 3.6; docs/kernels/attention.md has the counts of what lost.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("FASTTX_AOT") != "1":
    pytest.skip("compiles without the interpreter: run with FASTTX_AOT=1, in its own process", allow_module_level=True)

from ahead_of_time.dry_device import SHARED_BYTES, Record, dry_device, forget

from fasttx.kernels import attention_bwd as module
from fasttx.kernels.attention_config import OTHER_TILES, Config, config

MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA"}


def compile_backward(arch: int, dropout_p: float, length: int = 512, tile: Config | None = None) -> Record:
    """The kernel of dk and dv, head_dim 64 in bfloat16."""

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    q, k, v, out, dout, dq, dk, dv = (meta(4, length, 12, 64) for _ in range(8))
    lse = meta(4, 12, length, dtype=torch.float32)
    state = meta(2, dtype=torch.int64) if dropout_p else None
    args = (None, None, None, None, state, length, length, 0.125, dropout_p, -1, -1)

    def chosen(kernel: str, *args: int, **options: bool) -> Config:
        return tile or config(kernel, *args, **options)

    with pytest.MonkeyPatch.context() as patch, dry_device(arch, "fasttx.kernels.attention_bwd.arch_of") as records:
        patch.setattr(module, "config", chosen)
        forget()  # what another test compiled is recorded again
        module.attention_bwd(dq, dk, dv, meta(0), dout, q, k, v, out, lse, *args, False, False)
    return next(record for record in records if "dkdv" in record.name)


def count(names: list[str], start: str) -> int:
    return sum(name.startswith(start) for name in names)


@pytest.mark.parametrize(
    ("arch", "dropout_p", "instructions", "barriers"),
    [(90, 0.0, 419, 4), (90, 0.1, 615, 6), (80, 0.0, 474, 10), (80, 0.1, 595, 16)],
)
def test_one_iteration(arch: int, dropout_p: float, instructions: int, barriers: int) -> None:
    record = compile_backward(arch, dropout_p)
    loop = record.loop(MATRIX_INSTRUCTION[arch])
    assert count(loop, MATRIX_INSTRUCTION[arch]), "the loop was not found"
    assert record.spill_bytes == 0, str(record)
    assert len(loop) <= instructions
    assert count(loop, "BAR.") <= barriers
    copies = [name for name in loop if name.startswith("LDGSTS")]
    assert all(name.endswith((".64", ".128")) for name in copies), "copies of 4 bytes"
    tiles = count(copies, "LDGSTS.E.BYPASS.128")
    assert tiles and len(copies) == tiles + 1, "lse and delta are one copy of a thread"


@pytest.mark.parametrize(
    ("arch", "dropout_p", "instructions", "barriers"),
    [(90, 0.0, 677, 7), (90, 0.1, 961, 9), (80, 0.0, 520, 10), (80, 0.1, 641, 16)],
)
def test_one_iteration_of_the_single_pass(arch: int, dropout_p: float, instructions: int, barriers: int) -> None:
    """softmax_lse is read as the forward left it: unaligned, with a mask, and still once by each thread."""
    record = compile_backward(arch, dropout_p, length=128)
    loop = record.loop(MATRIX_INSTRUCTION[arch])
    assert record.spill_bytes == 0, str(record)
    assert len(loop) <= instructions
    assert count(loop, "BAR.") <= barriers
    assert count(loop, "LDGSTS") - count(loop, "LDGSTS.E.BYPASS.128") == 1


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    ("arch", "tile"), [(arch, t) for (_, arch, _), tiles in OTHER_TILES.items() for t in tiles], ids=str
)
def test_other_tiles_share_a_multiprocessor(arch: int, tile: Config, dropout_p: float) -> None:
    """Two blocks of them at least, and nothing spilled: with dropout, one pointer outside of the loop."""
    record = compile_backward(arch, dropout_p, tile=tile)
    loop = record.loop(MATRIX_INSTRUCTION[arch])
    assert count(loop, MATRIX_INSTRUCTION[arch]), "the loop was not found"
    assert 2 * record.registers * 32 * tile.num_warps <= 65536 and 2 * record.shared_bytes <= SHARED_BYTES[arch]
    assert record.spill_bytes <= (8 if dropout_p else 0), str(record)
    assert not count(loop, "LDL") and not count(loop, "STL")
    assert not [name for name in loop if name.startswith("LDGSTS") and not name.endswith((".64", ".128"))]
